"""Measures DeepMind's model on JAX, all of it compiled; see work.py."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import work
from recurrentgemma import common
from recurrentgemma.jax import griffin

_TYPES = {
    "recurrent": common.TemporalBlockType.RECURRENT,
    "attention": common.TemporalBlockType.ATTENTION,
}


class DeepMind:
    """Does the work with their module alone: their sampler takes nothing but text."""

    def __init__(self, model, dtype):
        self.model = model
        self.vocabulary_size = model.config.vocab_size
        ids = jnp.zeros((1, 2), "int32")
        params = jax.jit(model.init)(jax.random.key(0), ids, jnp.arange(2)[None])["params"]
        self.params = jax.tree.map(lambda x: x.astype(dtype), params)
        self.parameters = sum(x.size for x in jax.tree.leaves(self.params))

    def _logits(self, params, ids, start=0, cache=None):
        rows, length = ids.shape
        positions = jnp.broadcast_to(jnp.arange(length) + start, (rows, length))
        return self.model.apply({"params": params}, ids, positions, cache)

    def prefill(self, ids):
        """Returns a function that computes all logits of ids [B, T]."""
        logits = jax.jit(lambda params, ids: self._logits(params, ids)[0])
        return lambda: np.asarray(logits(self.params, jnp.asarray(ids)))

    def decode(self, ids, new_tokens):
        """Returns a function that generates after ids [B, T], in one program."""

        @jax.jit
        def generate(params, ids):
            logits, cache = self._logits(params, ids)
            first = jnp.argmax(logits[:, -1:], -1)

            def step(carry, index):
                last, cache = carry
                logits, cache = self._logits(params, last, ids.shape[1] + index, cache)
                return (jnp.argmax(logits, -1), cache), last[:, 0]

            _, tokens = jax.lax.scan(step, (first, cache), jnp.arange(new_tokens))
            return tokens

        return lambda: np.asarray(generate(self.params, jnp.asarray(ids)))

    def train(self, ids):
        """Returns a function that takes a step of Adam on ids [B, T + 1]."""
        optimizer = optax.adam(1e-3)
        state = [self.params, optimizer.init(self.params)]
        self.params = None  # the step takes its memory over
        x, y = jnp.asarray(ids[:, :-1]), jnp.asarray(ids[:, 1:])

        def loss(params):
            logits = self._logits(params, x)[0]
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))

        def step(params, optimizer_state):
            value, gradients = jax.value_and_grad(loss)(params)
            updates, optimizer_state = optimizer.update(gradients, optimizer_state)
            return value, optax.apply_updates(params, updates), optimizer_state

        compiled = jax.jit(step, donate_argnums=(0, 1))

        def run():
            value, *state[:] = compiled(*state)
            return float(value)

        return run


def make(args):
    """Makes a model with random weights and with the sizes of the checkpoint."""
    config = json.loads((pathlib.Path(args.folder) / "config.json").read_text(encoding="utf-8"))
    names, count = config["block_types"], config["num_hidden_layers"]
    model = griffin.Griffin(
        common.GriffinConfig(
            vocab_size=config["vocab_size"],
            width=config["hidden_size"],
            mlp_expanded_width=config["intermediate_size"] // 2,
            num_heads=config["num_attention_heads"],
            lru_width=config["lru_width"],
            block_types=tuple(_TYPES[names[i % len(names)]] for i in range(count)),
            embeddings_scale_by_sqrt_dim=True,
            attention_window_size=config["attention_window_size"],
            logits_soft_cap=config["logits_soft_cap"],
            # Their linear scan is written for TPUs and takes a minute to compile.
            scan_type=common.ScanType.ASSOCIATIVE_NATIVE,
        ),
        gradient_checkpointing=False,
        dtype=jnp.dtype(args.dtype),
    )
    return DeepMind(model, args.dtype)


if __name__ == "__main__":
    work.measure(make, work.arguments(__doc__))
