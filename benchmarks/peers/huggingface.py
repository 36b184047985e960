"""Measures RecurrentGemma of transformers, eager as it comes; see work.py."""

import torch
import transformers
import work


class HuggingFace:
    """Does the work as the documentation of transformers shows it."""

    def __init__(self, model):
        self.model = model
        self.vocabulary_size = model.config.vocab_size
        self.parameters = sum({id(x): x.numel() for x in model.parameters()}.values())

    def prefill(self, ids):
        """Returns a function that computes all logits of ids [B, T]."""
        ids = torch.tensor(ids)

        @torch.inference_mode()
        def run():
            return self.model.eval()(ids).logits

        return run

    def decode(self, ids, new_tokens):
        """Returns a function that generates after ids [B, T]."""
        ids = torch.tensor(ids)
        limits = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
        mask = torch.ones_like(ids)
        return lambda: self.model.eval().generate(ids, attention_mask=mask, **limits)

    def train(self, ids):
        """Returns a function that takes a step of Adam on ids [B, T + 1]."""
        ids = torch.tensor(ids)
        optimizer = torch.optim.Adam(self.model.parameters())

        def run():
            self.model.train()
            optimizer.zero_grad()
            logits = self.model(ids[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return run


def make(args):
    """Loads the checkpoint."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    return HuggingFace(load(args.folder, dtype=getattr(torch, args.dtype)))


if __name__ == "__main__":
    work.measure(make, work.arguments(__doc__))
