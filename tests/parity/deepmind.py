"""DeepMind's JAX implementation, run on the weights of one of our backbones."""

import jax
import jax.numpy as jnp
import numpy as np
from keras import ops
from recurrentgemma import common
from recurrentgemma.jax import griffin

from compiled import QUICK

TYPES = {
    "recurrent": common.TemporalBlockType.RECURRENT,
    "attention": common.TemporalBlockType.ATTENTION,
}


def griffin_config(config):
    """DeepMind's config of the architecture of an `RGemmaConfig`."""
    return common.GriffinConfig(
        vocab_size=config.vocabulary_size,
        width=config.hidden_dim,
        mlp_expanded_width=config.intermediate_dim,
        num_heads=config.num_query_heads,
        lru_width=config.recurrence_width,
        block_types=tuple(TYPES[t] for t in config.layer_types),
        embeddings_scale_by_sqrt_dim=config.scale_embeddings,
        attention_window_size=config.sliding_window_size,
        logits_soft_cap=config.final_logit_soft_cap or 0.0,
    )


def model(config, dtype="float32"):
    """DeepMind's model of an `RGemmaConfig`."""
    # The linear scan is unrolled 128 times, which takes a minute to compile.
    scan_type = common.ScanType.ASSOCIATIVE_NATIVE
    return griffin.Griffin(
        griffin_config(config)._replace(scan_type=scan_type),
        gradient_checkpointing=False,
        dtype=jnp.dtype(dtype),
    )


def weights_of(backbone):
    """Pairs of a path in DeepMind's tree and our variable, with what turns ours into theirs.

    The MLP's gate and up are two variables here and one array there: their paths end in an index.
    """
    same = lambda x: x  # noqa: E731
    flat_bias = lambda x: x.reshape(x.shape[0], x.shape[-1])  # noqa: E731

    def dense(path, layer):
        yield (*path, "kernel"), layer.kernel, same
        if layer.bias is not None:
            yield (*path, "bias"), layer.bias, same

    yield ("embedder", "input_embedding"), backbone.token_embedding.embeddings, same
    yield ("final_norm", "scale"), backbone.final_norm.scale, same
    for i, block in enumerate(backbone.transformer_layers):
        root = (f"blocks.{i}",)
        yield (*root, "temporal_pre_norm", "scale"), block.temporal_pre_norm.scale, same
        yield (*root, "channel_pre_norm", "scale"), block.channel_pre_norm.scale, same
        mlp = block.mlp_block
        for index, layer in enumerate((mlp.ffw_gate, mlp.ffw_up)):
            yield (*root, "mlp_block", "ffw_up", "w", index), layer.kernel, same
            yield (*root, "mlp_block", "ffw_up", "b", index), layer.bias, lambda x: x[None, None]
        yield from dense((*root, "mlp_block", "ffw_down"), mlp.ffw_down)
        temporal = block.temporal_block
        if block.block_type == "recurrent":
            root = (*root, "recurrent_block")
            for name in ("linear_x", "linear_y", "linear_out"):
                yield from dense((*root, name), getattr(temporal, name))
            yield (*root, "conv_1d", "w"), temporal.conv_1d.kernel, same
            yield (*root, "conv_1d", "b"), temporal.conv_1d.bias, same
            yield (*root, "rg_lru", "a_param"), temporal.rg_lru.a_param, same
            for name in ("input_gate", "a_gate"):
                gate = getattr(temporal.rg_lru, name)
                yield (*root, "rg_lru", name, "w"), gate.kernel, same
                yield (*root, "rg_lru", name, "b"), gate.bias, flat_bias
        else:
            root = (*root, "attention_block")
            names = {
                "query": "proj_q",
                "key": "proj_k",
                "value": "proj_v",
                "attention_output": "proj_final",
            }
            for ours, theirs in names.items():
                yield from dense((*root, theirs), getattr(temporal, ours))


def params(backbone):
    """DeepMind's parameter tree with our values."""
    tree, stacked = {}, {}
    for path, variable, convert in weights_of(backbone):
        value = convert(ops.convert_to_numpy(ops.cast(variable.value, "float32")))
        if isinstance(path[-1], int):
            stacked.setdefault(path[:-1], {})[path[-1]] = value
            continue
        _put(tree, path, value)
    for path, values in stacked.items():
        _put(tree, path, np.stack([values[0], values[1]]))
    return tree


def _put(tree, path, value):
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = jnp.asarray(value)


def gradient_at(tree, path):
    """The entry of a tree of gradients at a path of `weights_of`."""
    for key in path:
        tree = tree[key]
    return np.asarray(tree)


def segment_positions(padding_mask):
    """DeepMind's positions; a run of pads counts as a document of its own."""
    positions = np.zeros_like(padding_mask)
    for row, mask in enumerate(padding_mask):
        for t in range(1, len(mask)):
            positions[row, t] = positions[row, t - 1] + 1 if mask[t] == mask[t - 1] else 0
    return positions


def logits(backbone, token_ids, padding_mask, dtype="float32"):
    """DeepMind's logits [B, T, V], computed in a dtype; float64 serves as the truth."""
    with jax.enable_x64(dtype == "float64"):
        program = compiled(apply(backbone, token_ids, padding_mask, dtype))
        return np.asarray(program(params(backbone)))


def gradients(backbone, token_ids, padding_mask, loss, dtype="float32"):
    """The tree of gradients of `loss(logits)`, a function of jax arrays."""
    with jax.enable_x64(dtype == "float64"):
        forward = apply(backbone, token_ids, padding_mask, dtype)
        return compiled(jax.grad(lambda tree: loss(forward(tree))))(params(backbone))


def compiled(function):
    """The function in one program: operation by operation it compiles for minutes."""
    return jax.jit(function, compiler_options=QUICK)


def apply(backbone, token_ids, padding_mask, dtype="float32"):
    """The logits as a function of the parameter tree; to be compiled."""
    token_ids = jnp.asarray(token_ids, "int32")
    positions = jnp.asarray(segment_positions(padding_mask), "int32")
    reference = model(backbone.config, dtype)

    def run(tree):
        tree = jax.tree.map(lambda x: x.astype(dtype), tree)
        return reference.apply({"params": tree}, token_ids, positions, return_cache=False)[0]

    return run
