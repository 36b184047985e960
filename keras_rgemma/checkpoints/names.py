"""Lists every weight of a model with its name and layout in each format: the one table of names.

| format       | a name, for example                                          |
|--------------|--------------------------------------------------------------|
| Keras        | `block_0/mlp_block/ffw_gate/kernel`, a Keras variable's path |
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
EMBEDDING = "model.embed_tokens.weight"
# A tensor in which a checkpoint may repeat the embedding as the output projection.
LM_HEAD = "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class TensorLocation:
    """Locates a weight in a format.

    Attributes:
        name: str, the name of the tensor.
        transform: `Transform` between the weight and the tensor.
        part: None, or the index of the weight on the first axis of a tensor of several weights.
    """

    name: str
    transform: Transform = SAME
    part: int | None = None


@dataclasses.dataclass(frozen=True)
class Weight:
    """Describes a weight of a model.

    Attributes:
        path: str, the path of the Keras variable.
        shape: tuple of ints.
        flax, torch, huggingface: `TensorLocation`.
    """

    path: str
    shape: tuple[int, ...]
    flax: TensorLocation
    torch: TensorLocation
    huggingface: TensorLocation

    def place(self, format):
        """Returns the `TensorLocation` in a format of `FORMATS`."""
        return getattr(self, format)


def weights(config):
    """Lists all weights of the architecture of an `RGemmaConfig`, in the order of the layers."""
    d = config.hidden_dim
    all_weights = [
        _weight(
            "token_embedding/embeddings",
            (config.vocabulary_size, d),
            "embedder/input_embedding",
            EMBEDDING,
        )
    ]
    for i, layer_type in enumerate(config.layer_types):
        temporal = _recurrent if layer_type == RECURRENT else _attention
        for make in (_norms, temporal, _mlp):
            all_weights += [
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
        *all_weights,
        _weight("final_norm/scale", (d,), "final_norm/scale", "model.final_norm.weight"),
    ]


def rounded_layers(config):
    """Lists the paths of the layers whose matrices `quantize` rounds."""
    owners = [weight.path.rpartition("/") for weight in weights(config)]
    names = ("embeddings", "kernel")
    return [path for path, _, name in owners if name in names and not path.endswith("/conv_1d")]


def _under(root, place):
    """Prepends the name of a layer to a `TensorLocation`."""
    return dataclasses.replace(place, name=root + place.name)


def _weight(path, shape, flax, huggingface, transform=SAME, in_flax=SAME, part=None):
    """Makes a `Weight` whose name in torch is the name in flax with dots for slashes."""
    return Weight(
        path,
        shape,
        TensorLocation(flax, in_flax, part),
        TensorLocation(flax.replace("/", "."), in_flax, part),
        TensorLocation(huggingface, transform),
    )


def _dense(path, shape, flax, huggingface, bias=True):
    """Yields the kernel and the bias of a linear layer; torch's matrices are [out, in]."""
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
    block, temporal = "recurrent_block", "temporal_block"
    for name, shape in (("linear_y", (d, l)), ("linear_x", (d, l)), ("linear_out", (l, d))):
        yield from _dense(f"{block}/{name}", shape, f"{block}/{name}", f"{temporal}.{name}")
    conv = f"{block}/conv_1d"
    yield _weight(
        f"{conv}/kernel",
        (config.conv_width, l),
        f"{conv}/w",
        f"{temporal}.conv_1d.weight",
        transform=DEPTHWISE,
    )
    yield _weight(f"{conv}/bias", (l,), f"{conv}/b", f"{temporal}.conv_1d.bias")
    rg_lru, huggingface = f"{block}/rg_lru", f"{temporal}.rg_lru"
    yield _weight(f"{rg_lru}/a_param", (l,), f"{rg_lru}/a_param", f"{huggingface}.recurrent_param")
    for name, gate in (("input_gate", "input_gate"), ("a_gate", "recurrent_gate")):
        path, shape = f"{rg_lru}/{name}", (h, l // h, l // h)
        yield _weight(f"{path}/kernel", shape, f"{path}/w", f"{huggingface}.{gate}_weight")
        yield _weight(
            f"{path}/bias",
            (h, 1, 1, l // h),
            f"{path}/b",
            f"{huggingface}.{gate}_bias",
            transform=HEAD_BIAS,
            in_flax=HEAD_BIAS,
        )


def _attention(config):
    d = config.hidden_dim
    queries = config.num_query_heads * config.key_size
    keys = config.num_key_value_heads * config.key_size
    block, temporal = "attention_block", "temporal_block"
    for name, width, flax, huggingface in (
        ("query", queries, "proj_q", "q_proj"),
        ("key", keys, "proj_k", "k_proj"),
        ("value", keys, "proj_v", "v_proj"),
    ):
        places = (f"{block}/{flax}", f"{temporal}.{huggingface}")
        yield from _dense(f"{block}/{name}", (d, width), *places, bias=False)
    places = (f"{block}/proj_final", f"{temporal}.o_proj")
    yield from _dense(f"{block}/attention_output", (queries, d), *places)


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
    """Lists the tensors of a checkpoint in a format.

    Args:
        config: `RGemmaConfig`.
        format: str of `FORMATS`.

    Returns:
        dict of a tensor's name to a pair: its shape, and the list of the `Weight`s in it.
    """
    entries = {}
    for weight in weights(config):
        place = weight.place(format)
        shape = place.transform.file_shape(weight.shape)
        if place.part is not None:
            shape = (2, *shape)
        entries.setdefault(place.name, (shape, []))[1].append(weight)
    return entries
