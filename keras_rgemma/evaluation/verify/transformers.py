"""Observes `transformers`' RecurrentGemma on the fixed texts, where its window is not yet full."""

import numpy as np
import torch
import transformers

from keras_rgemma.checkpoints.folder import Checkpoint
from keras_rgemma.evaluation.verify.observation import EMBEDDING, FINAL_NORM
from keras_rgemma.evaluation.verify.texts import Material, Rows

PACKAGES = ("transformers", "torch")


def observe(
    checkpoint: Checkpoint, dtype: str, material: Material, new_tokens: int
) -> dict[str, np.ndarray]:
    """Loads a checkpoint into transformers' model and observes it.

    From position W on it shows W keys instead of W + 1, and its recurrence reads pads and other
    documents. So only plain rows are run, up to W tokens, and states are not compared.

    Args:
        checkpoint: `Checkpoint` in the format of Hugging Face.
        dtype: str, of weights and computation.
        material: `Material`.
        new_tokens: int, tokens of each greedy text.

    Returns:
        The arrays of an `Observation`, without states and peaks.
    """
    model = transformers.RecurrentGemmaForCausalLM.from_pretrained(
        checkpoint.path,
        dtype=getattr(torch, dtype),
        attn_implementation="eager",
        local_files_only=True,
    )
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    window = checkpoint.config.sliding_window_size
    arrays: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for name, rows in material.batches.items():
            found = _observe_row(model, rows, window)
            arrays |= {f"{name}/{key}": x for key, x in found.items()}
        for k, prompt in enumerate(material.prompts):
            found = _greedy_text(model, prompt, min(new_tokens, window - len(prompt)))
            arrays |= {f"greedy/{k}/{key}": x for key, x in found.items()}
    return arrays


def _observe_row(
    model: transformers.RecurrentGemmaForCausalLM, rows: Rows, window: int
) -> dict[str, np.ndarray]:
    """Runs the first row, as far as the window reaches."""
    places = rows.places[rows.places < window]
    ids = torch.tensor(rows.token_ids[:1, :window], dtype=torch.int64, device=model.device)
    found: dict[str, torch.Tensor] = {}
    inner, hooks = model.model, []

    def note(name: str) -> object:
        def hook(_: object, args: tuple, output: object) -> None:
            found[name] = (output[0] if isinstance(output, tuple) else output)[:, places]
            if name == "0":
                found[EMBEDDING] = args[0][:, places]

        return hook

    for i, layer in enumerate(inner.layers):
        hooks.append(layer.register_forward_hook(note(str(i))))
    hooks.append(inner.final_norm.register_forward_hook(note(FINAL_NORM)))
    kept = torch.tensor(places, dtype=torch.int64, device=model.device)
    logits = model(ids, use_cache=False, logits_to_keep=kept).logits
    for hook in hooks:
        hook.remove()
    arrays = {f"layer/{name}": _numpy(x) for name, x in found.items()}
    return arrays | {"logits": _numpy(logits)}


def _greedy_text(
    model: transformers.RecurrentGemmaForCausalLM, prompt: list[int], new_tokens: int
) -> dict[str, np.ndarray]:
    if new_tokens <= 0:
        empty = np.zeros((0, model.config.vocab_size), "float32")
        return {"tokens": empty[:, 0].astype("int32"), "logits": empty}
    ids = torch.tensor([prompt], dtype=torch.int64, device=model.device)
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=transformers.GenerationConfig(
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        ),
    )
    tokens = output.sequences[0, len(prompt) :].cpu().numpy().astype("int32")
    return {"tokens": tokens, "logits": np.concatenate([_numpy(x) for x in output.logits])}


def _numpy(x: torch.Tensor) -> np.ndarray:
    return x.float().cpu().numpy()
