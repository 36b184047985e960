"""Defines the forward pass of a backbone from a state to a state."""

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
from keras import ops

from keras_rgemma.config import ATTENTION
from keras_rgemma.layers.binding import unchanged
from keras_rgemma.layers.residual_block import ResidualBlock
from keras_rgemma.model.transformer_layers import TransformerLayers, as_block
from keras_rgemma.ops.documents import continued_positions, document_positions
from keras_rgemma.ops.places import Places, next_places, places_of
from keras_rgemma.sharding.activations import constrain
from keras_rgemma.state import records
from keras_rgemma.state.records import LayerState, ModelState
from keras_rgemma.types import Bind, Tensor


class BackboneState:
    """Mixin for `RGemmaBackbone` that runs its layers, with or without a state."""

    _blocks = ()

    @property
    def transformer_layers(self) -> list[Any]:
        """Returns the residual blocks, a list in their order.

        An element may be replaced by another layer, such as a wrapper around the block: training,
        scoring and generation then run that layer, and its weights are trained with the rest. It is
        called as a `ResidualBlock` is, and returns as much. A file of weights holds its weights. A
        config does not name it: replace the block of a loaded model, too, then load weights.

        Example:
        ```python
        class Doubled(keras.layers.Layer):
            def __init__(self, block):
                super().__init__()
                self.block = block

            def call(self, x, *args, return_state=False, **kwargs):
                outputs = self.block(x, *args, return_state=return_state, **kwargs)
                return (2 * outputs[0], outputs[1]) if return_state else 2 * outputs

        backbone.transformer_layers[1] = Doubled(backbone.transformer_layers[1])
        ```
        """
        return self._blocks

    @transformer_layers.setter
    def transformer_layers(self, layers: Iterable[keras.Layer]) -> None:
        # Keras would make a list of its own of it.
        object.__setattr__(self, "_blocks", TransformerLayers(self, layers))

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Tensor:
        in_graph = [layer for layer in self.layers if isinstance(layer, ResidualBlock)]
        current = self.transformer_layers
        if len(in_graph) == len(current) and all(map(operator.is_, in_graph, current)):
            return super().call(inputs, training=training, mask=mask)
        # Keras' graph knows nothing of the layers that replaced others.
        token_ids, mask = (ops.convert_to_tensor(inputs[x]) for x in ("token_ids", "padding_mask"))
        return self.call_layers(token_ids, document_positions(mask))

    def bound(self, bind: Bind) -> Callable[..., Any]:
        """Returns the forward pass with bound parts, see `layers.binding.unchanged`.

        Args:
            bind: function of a layer that returns a function of its call arguments.

        Returns:
            The function `forward` of this backbone, of `token_ids`, `places`, `layer_states`,
            `return_state` and `layer_intercept_fn`.

        Raises:
            ValueError: there are more or fewer layers than the config says.
        """
        if len(self.transformer_layers) != self.config.num_layers:
            raise ValueError(
                f"`transformer_layers` must hold {self.config.num_layers} layers. Received: "
                f"{len(self.transformer_layers)}. Replace a layer by another one, or make a "
                "backbone with another `num_layers`."
            )
        return functools.partial(
            forward,
            token_embedding=bind(self.token_embedding),
            embedding_scale=self.config.embedding_scale,
            blocks=[bind(as_block(layer)) for layer in self.transformer_layers],
            final_norm=bind(self.final_norm),
        )

    @property
    def rope(self) -> tuple[float, int] | None:
        """Returns the last arguments of `ops.rope.rotation`; None without attention layers."""
        is_used = ATTENTION in self.config.layer_types
        return (self.config.rope_max_wavelength, self.config.rotated_size) if is_used else None

    def call_layers(
        self,
        token_ids: Tensor,
        places: Places | Tensor,
        layer_states: Sequence[LayerState] | None = None,
        return_state: bool = False,
        layer_intercept_fn: Callable[..., Any] | None = None,
    ) -> Any:
        """Runs all layers, in training, scoring, prefill and decoding alike.

        Args:
            token_ids: int32 [B, T].
            places: `Places` of the tokens, or their positions int32 [B, T], -1 at pads.
            layer_states: None (each document begins in this row), or the `layers` of a
                `ModelState` before the rows; rows then hold tokens first, pads last.
            return_state: bool.
            layer_intercept_fn: None, or a function of activations [B, T, D] and a layer's index
                (-1 for the embeddings) that returns the activations for the next layer.

        Returns:
            The final hidden states [B, T, D], or with `return_state` a pair of hidden states and
            the tuple of the layers' new states.
        """
        places = places_of(places, self.rope)
        run = self.bound(unchanged)
        return run(token_ids, places, layer_states, return_state, layer_intercept_fn)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Computes the first block's input [B, T, D] from token ids, int32 [B, T]."""
        return embed(token_ids, self.token_embedding, self.config.embedding_scale)

    def step(
        self,
        token_ids: Tensor,
        padding_mask: Tensor | None,
        state: ModelState,
        has_begun: bool = False,
    ) -> tuple[Tensor, ModelState]:
        """Consumes more tokens of each row's document.

        Args:
            token_ids: int32 [B, T].
            padding_mask: int or bool [B, T], tokens first, then pads; pads change no state. None:
                every place holds a token.
            state: `ModelState`.
            has_begun: bool, whether every row is known to have consumed a token before.

        Returns:
            The final hidden states [B, T, D] and the new `ModelState`.

        Example:
        ```python
        state = backbone.initial_state(batch_size=1)
        hidden, state = backbone.step(np.array([[2, 300, 301]]), None, state)  # [1, 3, D]
        hidden, state = backbone.step(np.array([[302]]), None, state)  # [1, 1, D]
        ```
        """
        return self.bound_step(unchanged)(token_ids, padding_mask, state, has_begun)

    def bound_step(
        self, bind: Bind, compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = unchanged
    ) -> Callable[..., Any]:
        """Returns `step` with bound parts, see `generation.model.GenerativeModel.bound`."""
        return functools.partial(step, compiled(self.bound(bind)), self.rope)

    def initial_state(self, batch_size: int) -> ModelState:
        """Returns the `ModelState` of `batch_size` rows that have consumed no token.

        Example:
        ```python
        state = backbone.initial_state(batch_size=2)
        state.num_tokens  # [0, 0]
        ```
        """
        with self.distribution_scope():
            return records.laid_out(records.zeros(self.config, batch_size, self.compute_dtype))


def embed(
    token_ids: Tensor,
    token_embedding: Callable[..., Any],
    embedding_scale: float,
    intercept: Callable[[Tensor], Tensor] = unchanged,
) -> Tensor:
    """Looks up and scales embeddings: [B, T] -> [B, T, D]."""
    # Whole before it is divided over time: the compiler would rather gather the matrix.
    x = intercept(constrain(constrain(token_embedding(token_ids), "BTI"), "BTD"))
    return x if embedding_scale == 1.0 else x * ops.cast(embedding_scale, x.dtype)


def forward(
    token_ids: Tensor,
    places: Places,
    layer_states: Sequence[LayerState] | None = None,
    return_state: bool = False,
    layer_intercept_fn: Callable[..., Any] | None = None,
    *,
    token_embedding: Callable[..., Any],
    embedding_scale: float,
    blocks: Sequence[Callable[..., Any]],
    final_norm: Callable[[Tensor], Tensor],
) -> Any:
    """Computes `BackboneState.call_layers` with an embedding, blocks and a norm."""
    intercept = layer_intercept_fn or (lambda x, _: x)
    x = embed(token_ids, token_embedding, embedding_scale, lambda x: intercept(x, -1))
    new_states = []
    for i, block in enumerate(blocks):
        layer_state = None if layer_states is None else layer_states[i]
        x = block(x, places, state=layer_state, return_state=return_state)
        if return_state:
            x, layer_state = x
            new_states.append(layer_state)
        x = intercept(x, i)
    x = final_norm(x)
    return (x, tuple(new_states)) if return_state else x


def step(
    run: Callable[..., Any],
    rope: tuple[float, int] | None,
    token_ids: Tensor,
    padding_mask: Tensor | None,
    state: ModelState,
    has_begun: bool = False,
) -> tuple[Tensor, ModelState]:
    """Computes `BackboneState.step` with a forward pass `run` and the arguments of RoPE."""
    state = records.laid_out(state)
    if token_ids.shape[1] == 1:
        is_token = None if padding_mask is None else ops.cast(padding_mask[:, 0], "bool")
        places = next_places(state.num_tokens, is_token, has_begun, rope)
    else:
        mask = ops.ones_like(token_ids) if padding_mask is None else padding_mask
        places = places_of(continued_positions(mask, state.num_tokens), rope)
    hidden, layers = run(token_ids, places, state.layers, return_state=True)
    if places.is_token is None:
        num_tokens = places.length
    else:
        num_tokens = ops.where(places.last >= 0, places.length, state.num_tokens)
    return hidden, records.laid_out(records.ModelState(num_tokens, layers))
