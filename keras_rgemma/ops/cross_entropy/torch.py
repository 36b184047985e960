"""Computes the cross-entropy on PyTorch. Letters: N chunks, C tokens of each."""

from collections.abc import Callable
from typing import Any

import torch

from keras_rgemma.backend import resolve


def default_implementation() -> str:
    return "chunked"


def _logits(
    multiply: Callable[..., torch.Tensor],
    hidden_CD: torch.Tensor,
    embeddings_VD: torch.Tensor,
    soft_cap: float | None,
) -> torch.Tensor:
    """Computes logits. Here and below in place: a new array takes longer than a step in it."""
    logits_CV = multiply(hidden_CD, embeddings_VD, None, True).float()
    return logits_CV if soft_cap is None else logits_CV.div_(soft_cap).tanh_().mul_(soft_cap)


def _slope(
    logits_CV: torch.Tensor, log_sum_C: torch.Tensor, labels_C: torch.Tensor, soft_cap: float | None
) -> torch.Tensor:
    """Computes the gradient of each token's loss for its product, and overwrites the logits."""
    slope_CV = torch.sub(logits_CV, log_sum_C[:, None]).exp_()
    slope_CV[torch.arange(len(slope_CV)), labels_C] -= 1.0
    return (
        slope_CV
        if soft_cap is None
        else slope_CV.mul_(logits_CV.div_(soft_cap).square_().neg_().add_(1.0))
    )


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        soft_cap: float | None,
        needs_embedding_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # The choice of the caller: the gradient may be computed in another thread.
        ctx.multiply = resolve("matmul")
        outputs = []
        for hidden_CD, labels_C in zip(hidden, labels, strict=True):
            logits_CV = _logits(ctx.multiply, hidden_CD, embeddings, soft_cap)
            log_sum_C = torch.logsumexp(logits_CV, dim=-1)
            chosen_C = logits_CV.gather(1, labels_C[:, None])[:, 0]
            hit_C = (logits_CV.argmax(dim=-1) == labels_C).float()
            outputs.append((log_sum_C - chosen_C, hit_C, log_sum_C))
        loss, hit, log_sum = (torch.stack(parts) for parts in zip(*outputs, strict=True))
        # The gradient begins with the last chunk, whose logits are at hand.
        is_learning = any(ctx.needs_input_grad[:2])
        slope_CV = _slope(logits_CV, log_sum_C, labels_C, soft_cap) if is_learning else None
        ctx.save_for_backward(hidden, embeddings, labels, log_sum, slope_CV)
        ctx.soft_cap, ctx.needs_embedding_gradient = soft_cap, needs_embedding_gradient
        ctx.mark_non_differentiable(hit)
        return loss, hit

    @staticmethod
    def backward(
        ctx: Any, loss_gradient: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        hidden, embeddings, labels, log_sum, slope_CV = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden)
        needs_embedding_gradient = ctx.needs_embedding_gradient and ctx.needs_input_grad[1]
        total_VD = (
            torch.zeros(embeddings.shape, device=hidden.device)
            if needs_embedding_gradient
            else None
        )
        for i in reversed(range(len(hidden))):
            if slope_CV is None:
                logits_CV = _logits(ctx.multiply, hidden[i], embeddings, ctx.soft_cap)
                slope_CV = _slope(logits_CV, log_sum[i], labels[i], ctx.soft_cap)
            d_CV = (slope_CV * loss_gradient[i][:, None]).to(hidden.dtype)
            slope_CV = None
            d_hidden[i] = ctx.multiply(d_CV, embeddings, None, False)
            if needs_embedding_gradient:
                total_VD += ctx.multiply(d_CV.T, hidden[i], None, False)
        return (
            d_hidden,
            total_VD.to(embeddings.dtype) if needs_embedding_gradient else None,
            None,
            None,
            None,
        )


def _cross_entropy(
    hidden: torch.Tensor,
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    soft_cap: float | None,
    needs_embedding_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _CrossEntropy.apply(
        hidden, embeddings, labels.long(), soft_cap, needs_embedding_gradient
    )


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {"chunked": _cross_entropy}
