"""The forward pass of a backbone, with a state that goes in and comes out."""

from keras import ops

from keras_rgemma.ops.documents import continued_positions, last_token
from keras_rgemma.state import records


class BackboneState:
    """Mixin for `RGemmaBackbone` that runs its layers, from a state or from nothing."""

    def call_layers(
        self,
        token_ids,
        positions,
        layer_states=None,
        return_state=False,
        layer_intercept_fn=None,
    ):
        """The forward pass: of training, scoring, prefill and decoding alike.

        Args:
            token_ids: int32 [B, T].
            positions: int32 [B, T], the place of each token in its document, -1 at pads.
            layer_states: None (each document begins in this row), or the `layers` of a
                `ModelState`, of which the rows go on; they then hold tokens first, pads last.
            return_state: bool.
            layer_intercept_fn: None, or a function of activations [B, T, D] and a layer's index
                (-1 for the embeddings) that returns what goes on instead.

        Returns:
            The final hidden states [B, T, D], or with `return_state` a pair of them and the tuple
            of the layers' new records.
        """
        intercept = layer_intercept_fn or (lambda x, _: x)
        x = self.embed(token_ids, lambda x: intercept(x, -1))
        new_states = []
        for i, layer in enumerate(self.transformer_layers):
            layer_state = None if layer_states is None else layer_states[i]
            x = layer(x, positions, state=layer_state, return_state=return_state)
            if return_state:
                x, layer_state = x
                new_states.append(layer_state)
            x = intercept(x, i)
        x = self.final_norm(x)
        return (x, tuple(new_states)) if return_state else x

    def embed(self, token_ids, intercept=lambda x: x):
        """The activations [B, T, D] that the first block gets.

        Args:
            token_ids: int32 [B, T].
            intercept: a function of the embeddings [B, T, D], before they are scaled.
        """
        x = intercept(self.token_embedding(token_ids))
        if self.config.scale_embeddings:
            x = x * ops.cast(self.config.embedding_scale, x.dtype)
        return x

    def step(self, token_ids, padding_mask, state):
        """Consumes more tokens of each row's document.

        Args:
            token_ids: int32 [B, T].
            padding_mask: int or bool [B, T], tokens first, then pads; pads change no state.
            state: `ModelState`.

        Returns:
            The final hidden states [B, T, D] and the new `ModelState`.
        """
        positions = continued_positions(padding_mask, state.num_tokens)
        hidden, layers = self.call_layers(token_ids, positions, state.layers, return_state=True)
        last, length = last_token(positions)
        num_tokens = ops.where(last >= 0, length, state.num_tokens)
        return hidden, records.ModelState(num_tokens, layers)

    def initial_state(self, batch_size):
        """The `ModelState` of `batch_size` rows that have consumed nothing."""
        return records.zeros(self.config, batch_size, self.compute_dtype)
