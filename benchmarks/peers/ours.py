"""Measures this project's model on the backend of KERAS_BACKEND; see work.py."""

import keras
import numpy as np
import work

import keras_rgemma


class KerasModel:
    """Does the work through the public methods that every causal LM of KerasHub has."""

    def __init__(self, lm):
        self.lm = lm
        self.vocabulary_size = lm.backbone.token_embedding.input_dim
        self.parameters = lm.backbone.count_params()

    def prefill(self, ids):
        """Returns a function that computes all logits of ids [B, T]."""
        inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
        if keras.config.backend() != "torch":
            return lambda: self.lm.predict_on_batch(inputs)
        import torch  # as transformers does it: `predict` would make an array of the logits

        return torch.inference_mode()(lambda: self.lm(inputs))

    def decode(self, ids, new_tokens):
        """Returns a function that generates after ids [B, T]."""
        token_ids = np.pad(ids, ((0, 0), (0, new_tokens)))
        mask = np.pad(np.ones_like(ids), ((0, 0), (0, new_tokens)))
        inputs = {"token_ids": token_ids, "padding_mask": mask}
        self.lm.compile(sampler="greedy")
        return lambda: self.lm.generate(inputs, stop_token_ids=None)

    def train(self, ids):
        """Returns a function that takes a step of Adam on ids [B, T + 1]."""
        inputs = {"token_ids": ids[:, :-1], "padding_mask": np.ones_like(ids[:, :-1])}
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.lm.compile(optimizer="adam", loss=loss, weighted_metrics=[])
        return lambda: self.lm.train_on_batch(inputs, ids[:, 1:])


class Ours(KerasModel):
    """Does the work with this project's own arguments."""

    def decode(self, ids, new_tokens):
        limits = {"max_new_tokens": new_tokens, "stop_token_ids": None}
        return lambda: self.lm.generate({"token_ids": ids}, **limits)

    def train(self, ids):
        inputs = {"token_ids": ids[:, :-1], "padding_mask": np.ones_like(ids[:, :-1])}
        self.lm.compile(optimizer="adam", weighted_metrics=[])
        return lambda: self.lm.train_on_batch(inputs, ids[:, 1:])


def make(args):
    """Loads the checkpoint."""
    options = {"preprocessor": None, "dtype": args.dtype, "quantize": args.quantize}
    return Ours(keras_rgemma.RGemmaCausalLM.from_preset(args.folder, **options))


if __name__ == "__main__":
    work.measure(make, work.arguments(__doc__))
