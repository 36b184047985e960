"""Observes DeepMind's own implementation, `recurrentgemma` on JAX, on the fixed texts."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from recurrentgemma import common
from recurrentgemma.jax import griffin, sampler

from keras_rgemma.checkpoints.folder import Checkpoint
from keras_rgemma.config import RECURRENT, RGemmaConfig
from keras_rgemma.evaluation.verify.observation import EMBEDDING, FINAL_NORM
from keras_rgemma.evaluation.verify.tensors import deepmind_arrays
from keras_rgemma.evaluation.verify.texts import Material, Rows

PACKAGES = ("recurrentgemma", "flax", "jax")
# What their model has no setting for, and the value that it always has.
_FIXED = {
    "num_key_value_heads": 1,
    "conv_width": 4,
    "rope_max_wavelength": 10_000,
    "rope_fraction": 0.5,
    "activation": "gelu_tanh",
    "layer_norm_epsilon": 1e-6,
}


class _Ids:
    """Stands for their sampler's vocabulary: a text is a list of token ids with spaces between.

    Attributes:
        start: int, the first token of the text, which the sampler adds itself.
    """

    start = 2

    def EncodeAsIds(self, text: str) -> list[int]:
        return [int(x) for x in text.split()[1:]]

    def DecodeIds(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        return self.start

    def eos_id(self) -> int:
        return 1  # read where sampling ends at it, which here it does not

    def pad_id(self) -> int:
        return 0


def griffin_config(config: RGemmaConfig) -> Any:
    """Makes DeepMind's config of an architecture; for a published size it is their own.

    Args:
        config: `RGemmaConfig`.

    Returns:
        `recurrentgemma.common.GriffinConfig`.

    Raises:
        ValueError: their model has no equivalent for a setting.
    """
    wrong = {n: getattr(config, n) for n, x in _FIXED.items() if getattr(config, n) != x}
    if config.key_size * config.num_query_heads != config.hidden_dim:
        wrong["head_dim"] = config.key_size
    if wrong:
        raise ValueError(
            f"DeepMind's recurrentgemma has no setting for {wrong}; it always has "
            f"{ {n: _FIXED.get(n, 'hidden_dim // num_query_heads') for n in wrong} }. Compare with "
            "transformers: --reference transformers."
        )
    types = {RECURRENT: common.TemporalBlockType.RECURRENT}
    blocks = tuple(types.get(t, common.TemporalBlockType.ATTENTION) for t in config.layer_types)
    published = (common.Preset.RECURRENT_GEMMA_2B_V1, common.Preset.RECURRENT_GEMMA_9B_V1)
    for preset in published:
        theirs = common.GriffinConfig.from_preset(preset, vocab_size=config.vocabulary_size)
        if (theirs.width, theirs.num_layers) == (config.hidden_dim, config.num_layers):
            break
    else:
        theirs = common.GriffinConfig(
            vocab_size=config.vocabulary_size,
            width=config.hidden_dim,
            mlp_expanded_width=config.intermediate_dim,
            num_heads=config.num_query_heads,
            lru_width=config.recurrence_width,
            block_types=blocks,
            embeddings_scale_by_sqrt_dim=config.scale_embeddings,
            attention_window_size=config.sliding_window_size,
            logits_soft_cap=config.final_logit_soft_cap or 0.0,
        )
    # The linear scan is unrolled 128 times, which takes a minute to compile.
    return theirs._replace(scan_type=common.ScanType.ASSOCIATIVE_NATIVE)


def observe(
    checkpoint: Checkpoint, dtype: str, material: Material, new_tokens: int
) -> dict[str, np.ndarray]:
    """Loads a checkpoint into DeepMind's model and observes it.

    Args:
        checkpoint: `Checkpoint` in a format of Hugging Face or DeepMind.
        dtype: str, of weights and computation.
        material: `Material`.
        new_tokens: int, tokens of each greedy text.

    Returns:
        The arrays of an `Observation`, without peaks.

    Raises:
        ValueError: their model has no equivalent for a setting.
    """
    config = griffin_config(checkpoint.config)
    leaves = deepmind_arrays(checkpoint.open_weights(), lambda x: jnp.asarray(x, dtype))
    params = _nested(leaves)
    arrays = {}
    for name, rows in material.batches.items():
        found = _observe_rows(config, dtype, params, rows)
        arrays |= {f"{name}/{key}": np.asarray(x, "float32") for key, x in found.items()}
    return arrays | _greedy_texts(config, dtype, params, material.prompts, new_tokens)


def _nested(leaves: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        branch = tree
        for key in parents:
            branch = branch.setdefault(key, {})
        branch[last] = leaf
    return tree


def _model(config: common.GriffinConfig, dtype: str) -> griffin.Griffin:
    return griffin.Griffin(config, gradient_checkpointing=False, dtype=jnp.dtype(dtype))


def _observe_rows(
    config: common.GriffinConfig, dtype: str, params: dict[str, Any], rows: Rows
) -> dict[str, Any]:
    """Runs their model over rows; returns flat arrays, as of `Observation`."""
    # At V = 256,000 the logits of all tokens of a long row take gigabytes.
    is_whole = len(rows.places) == rows.token_ids.shape[1]
    ids, positions = jnp.asarray(rows.token_ids), jnp.asarray(rows.positions(), "int32")
    layers, logits, caches = _run(
        config, dtype, is_whole, params, ids, positions, jnp.asarray(rows.places)
    )
    found = {f"layer/{name}": x for name, x in layers.items()} | {"logits": logits}
    for i in range(config.num_layers):
        cache = caches[f"blocks.{i}"]
        names = {"rg_lru_state": "recurrence", "conv1d_state": "conv"}
        for name, x in cache._asdict().items():
            if name != "num_tokens":
                found[f"state/{i}/{names.get(name, name)}"] = x
    return found


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(
    config: common.GriffinConfig,
    dtype: str,
    is_whole: bool,
    params: dict[str, Any],
    ids: jax.Array,
    positions: jax.Array,
    places: jax.Array,
) -> tuple[dict[str, jax.Array], jax.Array, dict[str, Any]]:
    """Computes layers, logits and caches of rows with their model.

    With `is_whole` the logits are those of their `__call__`; otherwise its last lines, the norm,
    the product with the embedding and the cap, run at the chosen places alone.
    """
    model = _model(config, dtype)

    def is_observed(_: object, method: str) -> bool:
        return method in ("__call__", "encode")

    (logits, caches), noted = model.apply(
        {"params": params},
        ids,
        positions,
        return_logits=is_whole,
        capture_intermediates=is_observed,
    )
    noted = noted["intermediates"]
    layers = {EMBEDDING: noted["embedder"]["encode"][0]}
    for i in range(config.num_layers):
        layers[str(i)] = noted[f"blocks.{i}"]["__call__"][0][0]
    layers = {name: x[:, places] for name, x in layers.items()}

    def end(module: griffin.Griffin, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = module.final_norm(x)
        return x, module.embedder.decode(x)

    last = layers[str(config.num_layers - 1)]
    layers[FINAL_NORM], uncapped = model.apply({"params": params}, last, method=end)
    if not is_whole:
        cap = config.logits_soft_cap
        logits = jnp.tanh(uncapped / cap) * cap if cap else uncapped
    return layers, logits, caches


def _greedy_texts(
    config: common.GriffinConfig,
    dtype: str,
    params: dict[str, Any],
    prompts: list[list[int]],
    new_tokens: int,
) -> dict[str, np.ndarray]:
    """Continues prompts with their sampler."""
    vocabulary = _Ids()
    sample = sampler.Sampler(_model(config, dtype), vocabulary, params, deterministic_sampling=True)
    arrays = {}
    for k, prompt in enumerate(prompts):
        vocabulary.start = prompt[0]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Some donated buffers were not usable")
            output = sample(
                [" ".join(map(str, prompt))],
                total_generation_steps=new_tokens,
                return_logits=True,
                end_sampling_at_eos_token=False,
            )
        arrays[f"greedy/{k}/tokens"] = np.asarray(output.tokens[0])[-new_tokens:].astype("int32")
        arrays[f"greedy/{k}/logits"] = np.asarray(output.logits[0], "float32")[-new_tokens:]
    return arrays
