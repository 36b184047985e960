"""Lists every weight of a model with its name and layout in each format: the one table of names.

| format       | a name, for example                                          |
|--------------|--------------------------------------------------------------|
| Keras        | `block_0/mlp_block/ffw_gate/kernel`, a Keras variable's path |
| flax         | `blocks.0/mlp_block/ffw_up/w`, a path in DeepMind's tree     |
| torch        | `blocks.0.mlp_block.ffw_up.w`, in DeepMind's `.pt`           |
| huggingface  | `model.layers.0.mlp_block.gate_proj.weight`                  |
"""

import dataclasses
from collections.abc import Iterator

from keras_rgemma.checkpoints.transforms import (
    BRANCH_BIAS,
    DEPTHWISE,
    HEAD_BIAS,
    SAME,
    TRANSPOSED,
    Transform,
)
from keras_rgemma.config import BLOCK_TYPES, RECURRENT, RGemmaConfig

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
        dimensions: str, the names of its dimensions with spaces between: the letters of
            `shapes.py`; R, the taps of the convolution; HK and K, the features of all query heads
            and of all key/value heads; I and J, inputs and outputs of a block of the gates; and 1.
        shape: tuple of ints, its sizes in an architecture; () where none is given.
        flax, torch, huggingface: `TensorLocation`.
    """

    path: str
    dimensions: str
    flax: TensorLocation
    torch: TensorLocation
    huggingface: TensorLocation
    shape: tuple[int, ...] = ()

    def place(self, format: str) -> TensorLocation:
        """Returns the `TensorLocation` in a format of `FORMATS`."""
        return getattr(self, format)


def weights(config: RGemmaConfig) -> list[Weight]:
    """Lists all weights of the architecture of an `RGemmaConfig`, in the order of the layers."""
    sizes = _sizes(config)
    all_weights = [
        _embedding(),
        *(
            weight
            for i, layer_type in enumerate(config.layer_types)
            for weight in _block(i, layer_type)
        ),
        _final_norm(),
    ]
    return [
        dataclasses.replace(weight, shape=tuple(sizes[x] for x in weight.dimensions.split()))
        for weight in all_weights
    ]


def dimensions_by_path() -> dict[str, tuple[str, ...]]:
    """Maps a regular expression of the path of each kind of weight to its dimensions.

    Returns:
        dict of str to tuple of str, as of `Weight.dimensions`, for any architecture.
    """
    blocks = [weight for kind in BLOCK_TYPES for weight in _block(r"\d+", kind)]
    kinds = [_embedding(), *blocks, _final_norm()]
    return {weight.path: tuple(weight.dimensions.split()) for weight in kinds}


def _sizes(config: RGemmaConfig) -> dict[str, int]:
    """Returns the size of each dimension by its name, a dict."""
    block = config.recurrence_width // config.num_query_heads
    return {
        "1": 1,
        "D": config.hidden_dim,
        "H": config.num_query_heads,
        "HK": config.num_query_heads * config.key_size,
        "I": block,
        "J": block,
        "K": config.num_key_value_heads * config.key_size,
        "L": config.recurrence_width,
        "M": config.intermediate_dim,
        "R": config.conv_width,
        "V": config.vocabulary_size,
    }


def _embedding() -> Weight:
    return _weight("token_embedding/embeddings", "V D", "embedder/input_embedding", EMBEDDING)


def _final_norm() -> Weight:
    return _weight("final_norm/scale", "D", "final_norm/scale", "model.final_norm.weight")


def _block(number: int | str, layer_type: str) -> list[Weight]:
    """Lists the weights of a residual block."""
    temporal = _recurrent if layer_type == RECURRENT else _attention
    return [
        dataclasses.replace(
            weight,
            path=f"block_{number}/{weight.path}",
            flax=_under(f"blocks.{number}/", weight.flax),
            torch=_under(f"blocks.{number}.", weight.torch),
            huggingface=_under(f"model.layers.{number}.", weight.huggingface),
        )
        for make in (_norms, temporal, _mlp)
        for weight in make()
    ]


def rounded_layers(config: RGemmaConfig) -> list[str]:
    """Lists the paths of the layers whose matrices `quantize` rounds."""
    owners = [weight.path.rpartition("/") for weight in weights(config)]
    names = ("embeddings", "kernel")
    return [path for path, _, name in owners if name in names and not path.endswith("/conv_1d")]


def _under(root: str, place: TensorLocation) -> TensorLocation:
    """Prepends the name of a layer to a `TensorLocation`."""
    return dataclasses.replace(place, name=root + place.name)


def _weight(
    path: str,
    dimensions: str,
    flax: str,
    huggingface: str,
    transform: Transform = SAME,
    in_flax: Transform = SAME,
    part: int | None = None,
) -> Weight:
    """Makes a `Weight` whose name in torch is the name in flax with dots for slashes."""
    return Weight(
        path,
        dimensions,
        TensorLocation(flax, in_flax, part),
        TensorLocation(flax.replace("/", "."), in_flax, part),
        TensorLocation(huggingface, transform),
    )


def _dense(
    path: str, dimensions: str, flax: str, huggingface: str, bias: bool = True
) -> Iterator[Weight]:
    """Yields the kernel and the bias of a linear layer; torch's matrices are [out, in]."""
    yield Weight(
        f"{path}/kernel",
        dimensions,
        TensorLocation(f"{flax}/kernel"),
        TensorLocation(f"{flax}.weight".replace("/", "."), TRANSPOSED),
        TensorLocation(f"{huggingface}.weight", TRANSPOSED),
    )
    if bias:
        outputs = dimensions.split()[1]
        yield _weight(f"{path}/bias", outputs, f"{flax}/bias", f"{huggingface}.bias")


def _norms() -> Iterator[Weight]:
    for name in ("temporal_pre_norm", "channel_pre_norm"):
        yield _weight(f"{name}/scale", "D", f"{name}/scale", f"{name}.weight")


def _recurrent() -> Iterator[Weight]:
    block, temporal = "recurrent_block", "temporal_block"
    for name, dimensions in (("linear_y", "D L"), ("linear_x", "D L"), ("linear_out", "L D")):
        yield from _dense(f"{block}/{name}", dimensions, f"{block}/{name}", f"{temporal}.{name}")
    conv = f"{block}/conv_1d"
    yield _weight(
        f"{conv}/kernel",
        "R L",
        f"{conv}/w",
        f"{temporal}.conv_1d.weight",
        transform=DEPTHWISE,
    )
    yield _weight(f"{conv}/bias", "L", f"{conv}/b", f"{temporal}.conv_1d.bias")
    rg_lru, huggingface = f"{block}/rg_lru", f"{temporal}.rg_lru"
    yield _weight(f"{rg_lru}/a_param", "L", f"{rg_lru}/a_param", f"{huggingface}.recurrent_param")
    for name, gate in (("input_gate", "input_gate"), ("a_gate", "recurrent_gate")):
        path = f"{rg_lru}/{name}"
        yield _weight(f"{path}/kernel", "H I J", f"{path}/w", f"{huggingface}.{gate}_weight")
        yield _weight(
            f"{path}/bias",
            "H 1 1 J",
            f"{path}/b",
            f"{huggingface}.{gate}_bias",
            transform=HEAD_BIAS,
            in_flax=HEAD_BIAS,
        )


def _attention() -> Iterator[Weight]:
    block, temporal = "attention_block", "temporal_block"
    for name, width, flax, huggingface in (
        ("query", "HK", "proj_q", "q_proj"),
        ("key", "K", "proj_k", "k_proj"),
        ("value", "K", "proj_v", "v_proj"),
    ):
        places = (f"{block}/{flax}", f"{temporal}.{huggingface}")
        yield from _dense(f"{block}/{name}", f"D {width}", *places, bias=False)
    places = (f"{block}/proj_final", f"{temporal}.o_proj")
    yield from _dense(f"{block}/attention_output", "HK D", *places)


def _mlp() -> Iterator[Weight]:
    mlp = "mlp_block"
    for part, (name, huggingface) in enumerate((("ffw_gate", "gate_proj"), ("ffw_up", "up_proj"))):
        yield _weight(
            f"{mlp}/{name}/kernel",
            "D M",
            f"{mlp}/ffw_up/w",
            f"{mlp}.{huggingface}.weight",
            transform=TRANSPOSED,
            part=part,
        )
        yield _weight(
            f"{mlp}/{name}/bias",
            "M",
            f"{mlp}/ffw_up/b",
            f"{mlp}.{huggingface}.bias",
            in_flax=BRANCH_BIAS,
            part=part,
        )
    yield from _dense(f"{mlp}/ffw_down", "M D", f"{mlp}/ffw_down", f"{mlp}.down_proj")


def tensors(config: RGemmaConfig, format: str) -> dict[str, tuple[tuple[int, ...], list[Weight]]]:
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
