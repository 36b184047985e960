"""The one table of names: every weight of a model, and where each format keeps it.

| format       | what a name looks like                                       |
|--------------|--------------------------------------------------------------|
| ours         | `block_0/mlp_block/ffw_gate/kernel`, a Keras variable's path |
| flax         | `blocks.0/mlp_block/ffw_up/w`, a path in DeepMind's tree     |
| torch        | `blocks.0.mlp_block.ffw_up.w`, in DeepMind's `.pt`           |
| huggingface  | `model.layers.0.mlp_block.gate_proj.weight`                  |
"""

import dataclasses

from keras_rgemma.checkpoints.transforms import (
    BRANCH_BIAS,
    DEPTHWISE,
    HEAD_BIAS,
    SAME,
    TRANSPOSED,
    Transform,
)
from keras_rgemma.config import RECURRENT

FORMATS = ("flax", "torch", "huggingface")
# Where a checkpoint may repeat the embedding as the output projection.
LM_HEAD = "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class TensorLocation:
    """Where a format keeps a weight.

    Attributes:
        name: str, of the tensor.
        transform: `Transform`.
        part: None, or the index of the weight on the first axis of a tensor that holds several.
    """

    name: str
    transform: Transform = SAME
    part: int | None = None


@dataclasses.dataclass(frozen=True)
class Weight:
    """A weight of a model.

    Attributes:
        path: str, of the Keras variable.
        shape: tuple of ints.
        flax, torch, huggingface: `TensorLocation`.
    """

    path: str
    shape: tuple[int, ...]
    flax: TensorLocation
    torch: TensorLocation
    huggingface: TensorLocation

    def place(self, format):
        """The `TensorLocation` in a format of `FORMATS`."""
        return getattr(self, format)


def weights(config):
    """All weights of the architecture of an `RGemmaConfig`, in the order of the layers."""
    d = config.hidden_dim
    found = [
        _weight(
            "token_embedding/embeddings",
            (config.vocabulary_size, d),
            "embedder/input_embedding",
            "model.embed_tokens.weight",
        )
    ]
    for i, layer_type in enumerate(config.layer_types):
        temporal = _recurrent if layer_type == RECURRENT else _attention
        for make in (_norms, temporal, _mlp):
            found += [
                dataclasses.replace(
                    weight,
                    path=f"block_{i}/{weight.path}",
                    flax=_under(f"blocks.{i}/", weight.flax),
                    torch=_under(f"blocks.{i}.", weight.torch),
                    huggingface=_under(f"model.layers.{i}.", weight.huggingface),
                )
                for weight in make(config)
            ]
    return [
        *found,
        _weight("final_norm/scale", (d,), "final_norm/scale", "model.final_norm.weight"),
    ]


def _under(root, place):
    return dataclasses.replace(place, name=root + place.name)


def _weight(path, shape, flax, huggingface, transform=SAME, in_flax=SAME, part=None):
    """A `Weight` whose torch tensor is that of flax with dots for slashes."""
    return Weight(
        path,
        shape,
        TensorLocation(flax, in_flax, part),
        TensorLocation(flax.replace("/", "."), in_flax, part),
        TensorLocation(huggingface, transform),
    )


def _dense(path, shape, flax, huggingface, bias=True):
    """The kernel and the bias of a linear layer; torch's matrices are [out, in]."""
    yield Weight(
        f"{path}/kernel",
        shape,
        TensorLocation(f"{flax}/kernel"),
        TensorLocation(f"{flax}.weight".replace("/", "."), TRANSPOSED),
        TensorLocation(f"{huggingface}.weight", TRANSPOSED),
    )
    if bias:
        yield _weight(f"{path}/bias", shape[1:], f"{flax}/bias", f"{huggingface}.bias")


def _norms(config):
    for name in ("temporal_pre_norm", "channel_pre_norm"):
        yield _weight(f"{name}/scale", (config.hidden_dim,), f"{name}/scale", f"{name}.weight")


def _recurrent(config):
    d, l, h = config.hidden_dim, config.recurrence_width, config.num_query_heads
    ours, theirs = "recurrent_block", "temporal_block"
    for name, shape in (("linear_y", (d, l)), ("linear_x", (d, l)), ("linear_out", (l, d))):
        yield from _dense(f"{ours}/{name}", shape, f"{ours}/{name}", f"{theirs}.{name}")
    conv = f"{ours}/conv_1d"
    yield _weight(
        f"{conv}/kernel",
        (config.conv_width, l),
        f"{conv}/w",
        f"{theirs}.conv_1d.weight",
        transform=DEPTHWISE,
    )
    yield _weight(f"{conv}/bias", (l,), f"{conv}/b", f"{theirs}.conv_1d.bias")
    rg_lru, theirs = f"{ours}/rg_lru", f"{theirs}.rg_lru"
    yield _weight(f"{rg_lru}/a_param", (l,), f"{rg_lru}/a_param", f"{theirs}.recurrent_param")
    for name, gate in (("input_gate", "input_gate"), ("a_gate", "recurrent_gate")):
        path, shape = f"{rg_lru}/{name}", (h, l // h, l // h)
        yield _weight(f"{path}/kernel", shape, f"{path}/w", f"{theirs}.{gate}_weight")
        yield _weight(
            f"{path}/bias",
            (h, 1, 1, l // h),
            f"{path}/b",
            f"{theirs}.{gate}_bias",
            transform=HEAD_BIAS,
            in_flax=HEAD_BIAS,
        )


def _attention(config):
    d = config.hidden_dim
    queries = config.num_query_heads * config.key_size
    keys = config.num_key_value_heads * config.key_size
    ours, theirs = "attention_block", "temporal_block"
    for name, width, flax, huggingface in (
        ("query", queries, "proj_q", "q_proj"),
        ("key", keys, "proj_k", "k_proj"),
        ("value", keys, "proj_v", "v_proj"),
    ):
        places = (f"{ours}/{flax}", f"{theirs}.{huggingface}")
        yield from _dense(f"{ours}/{name}", (d, width), *places, bias=False)
    places = (f"{ours}/proj_final", f"{theirs}.o_proj")
    yield from _dense(f"{ours}/attention_output", (queries, d), *places)


def _mlp(config):
    d, m = config.hidden_dim, config.intermediate_dim
    mlp = "mlp_block"
    for part, (name, huggingface) in enumerate((("ffw_gate", "gate_proj"), ("ffw_up", "up_proj"))):
        yield _weight(
            f"{mlp}/{name}/kernel",
            (d, m),
            f"{mlp}/ffw_up/w",
            f"{mlp}.{huggingface}.weight",
            transform=TRANSPOSED,
            part=part,
        )
        yield _weight(
            f"{mlp}/{name}/bias",
            (m,),
            f"{mlp}/ffw_up/b",
            f"{mlp}.{huggingface}.bias",
            in_flax=BRANCH_BIAS,
            part=part,
        )
    yield from _dense(f"{mlp}/ffw_down", (m, d), f"{mlp}/ffw_down", f"{mlp}.down_proj")


def tensors(config, format):
    """The tensors that a checkpoint in a format holds.

    Args:
        config: `RGemmaConfig`.
        format: str of `FORMATS`.

    Returns:
        dict of a tensor's name to a pair: its shape, and the list of the `Weight`s in it.
    """
    found = {}
    for weight in weights(config):
        place = weight.place(format)
        shape = place.transform.file_shape(weight.shape)
        if place.part is not None:
            shape = (2, *shape)
        found.setdefault(place.name, (shape, []))[1].append(weight)
    return found
