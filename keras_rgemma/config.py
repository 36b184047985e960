"""States the architecture of a model once, and checks it at construction."""

import dataclasses
import math
import operator
import struct
from collections.abc import Sequence
from typing import Any

RECURRENT = "recurrent"
ATTENTION = "attention"
BLOCK_TYPES = (RECURRENT, ATTENTION)
# Far above any published model: a larger config is broken, and would keep a machine busy for long.
MOST_PARAMETERS = 10**13
LARGEST_WINDOW = 2**24
# The functions are in `layers/activation.py`. Each has its equivalent in transformers.
ACTIVATIONS = (
    "gelu_tanh",
    "gelu",
    "silu",
    "relu",
    "gelu_10",
    "hard_silu",
    "laplace",
    "leaky_relu_0.01",
    "linear",
    "mish",
    "quick_gelu",
    "relu2",
    "relu6",
    "sigmoid",
    "sqrtsoftplus",
    "tanh",
)


@dataclasses.dataclass(frozen=True)
class RGemmaConfig:
    """Holds the sizes and switches of a RecurrentGemma (Griffin) model.

    They are the arguments of `RGemmaBackbone` but `dtype`, under the same names. The values are
    cross-checked at construction; `head_dim` and `lru_dim` keep their `None` (so that a saved
    config is the one that was given) and are resolved by `key_size` and `recurrence_width`.

    Raises:
        ValueError: a value breaks a rule; the message names the value and the rule.

    Example:
    ```python
    config = RGemmaConfig(
        vocabulary_size=256, num_layers=3, hidden_dim=16, intermediate_dim=48, num_query_heads=2
    )
    config.layer_types      # ("recurrent", "recurrent", "attention")
    config.parameter_count  # 16_032
    ```

    Source: Griffin, arXiv 2402.19427, section 2; RecurrentGemma, arXiv 2404.07839, table 1.
    """

    vocabulary_size: int
    num_layers: int
    hidden_dim: int
    intermediate_dim: int
    num_query_heads: int
    num_key_value_heads: int = 1
    head_dim: int | None = None
    lru_dim: int | None = None
    block_types: Sequence[str] = (RECURRENT, RECURRENT, ATTENTION)
    sliding_window_size: int = 2048
    conv_width: int = 4
    final_logit_soft_cap: float | None = 30.0
    scale_embeddings: bool = True
    rope_max_wavelength: float = 10_000
    rope_fraction: float = 0.5
    activation: str = "gelu_tanh"
    layer_norm_epsilon: float = 1e-6
    dropout: float = 0.0
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.block_types, (list, tuple)):
            raise ValueError(
                "`block_types` must be a list or tuple of block types. "
                f"Received: {self.block_types!r}. Write for instance ('recurrent',)."
            )
        object.__setattr__(self, "block_types", tuple(self.block_types))
        self._check_counts()
        self._check_ranges()
        self._check_block_types()
        self._check_divisions()
        self._check_size()

    def _check_counts(self) -> None:
        required = (
            "vocabulary_size",
            "num_layers",
            "hidden_dim",
            "intermediate_dim",
            "num_query_heads",
            "num_key_value_heads",
            "sliding_window_size",
            "conv_width",
        )
        optional = tuple(n for n in ("head_dim", "lru_dim") if getattr(self, n) is not None)
        for name in required + optional:
            object.__setattr__(self, name, check_count(name, getattr(self, name)))

    def _check_ranges(self) -> None:
        rules = {
            "final_logit_soft_cap": (lambda x: x > 0, "positive, or None for no cap"),
            "rope_max_wavelength": (lambda x: x > 1, "greater than 1"),
            "rope_fraction": (lambda x: 0 <= x <= 1, "between 0 and 1"),
            "layer_norm_epsilon": (lambda x: x > 0, "positive"),
            "dropout": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
        }
        for name, (holds, rule) in rules.items():
            value = getattr(self, name)
            if name == "final_logit_soft_cap" and value is None:
                continue
            if not _is_finite_number(value) or not holds(value):
                raise ValueError(f"`{name}` must be a number {rule}. Received: {value!r}.")
        for name in ("scale_embeddings", "gradient_checkpointing"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"`{name}` must be True or False. Received: {getattr(self, name)!r}."
                )
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"`activation` must be one of {ACTIVATIONS}. Received: {self.activation!r}."
            )

    def _check_block_types(self) -> None:
        if not self.block_types:
            raise ValueError("`block_types` must name at least one block type. Received: ().")
        for block_type in self.block_types:
            if block_type not in BLOCK_TYPES:
                raise ValueError(
                    f"`block_types` may hold {BLOCK_TYPES} only. Received: {block_type!r} in "
                    f"{self.block_types}."
                )

    def _check_divisions(self) -> None:
        heads = self.num_query_heads
        if self.head_dim is None and self.hidden_dim % heads:
            raise ValueError(
                f"`num_query_heads`={heads} must divide `hidden_dim`={self.hidden_dim} when "
                "`head_dim` is None. Pass `head_dim`, or another number of heads."
            )
        if heads % self.num_key_value_heads:
            raise ValueError(
                f"`num_key_value_heads`={self.num_key_value_heads} must divide "
                f"`num_query_heads`={heads}. Pass 1, as the published models have, or a divisor."
            )
        used = self.block_types[: self.num_layers]
        if RECURRENT in used and self.recurrence_width % heads:
            raise ValueError(
                f"`num_query_heads`={heads} must divide `lru_dim`={self.recurrence_width}: the "
                "gates of the recurrence have one block a head."
            )
        rotated = self.key_size * self.rope_fraction
        # A fraction such as 0.28 is no binary number: 50 * 0.28 is 14.000000000000002.
        near = abs(rotated - self.rotated_size) < 1e-6
        if ATTENTION in used and (not near or self.rotated_size % 2):
            raise ValueError(
                f"`rope_fraction`={self.rope_fraction} of `head_dim`={self.key_size} must be an "
                f"even whole number. Received: {rotated}."
            )

    def _check_size(self) -> None:
        if self.sliding_window_size > LARGEST_WINDOW:
            raise ValueError(
                f"`sliding_window_size` must be at most {LARGEST_WINDOW:,}. Received: "
                f"{self.sliding_window_size:,}."
            )
        if self.parameter_count > MOST_PARAMETERS:
            raise ValueError(
                f"These sizes ask for more than {MOST_PARAMETERS:.0e} parameters. Received: {self}."
            )

    @property
    def key_size(self) -> int:
        """Returns K, the width of one attention head."""
        return self.hidden_dim // self.num_query_heads if self.head_dim is None else self.head_dim

    @property
    def recurrence_width(self) -> int:
        """Returns L, the width of the RG-LRU."""
        return self.hidden_dim if self.lru_dim is None else self.lru_dim

    @property
    def rotated_size(self) -> int:
        """Returns the number of a head's first features that RoPE rotates, of all K."""
        return round(self.key_size * self.rope_fraction)

    @property
    def layer_types(self) -> tuple[str, ...]:
        """Returns the block type of each layer: `block_types`, cycled."""
        return tuple(self.block_types[i % len(self.block_types)] for i in range(self.num_layers))

    @property
    def embedding_scale(self) -> float:
        """Returns the factor of looked-up embeddings: sqrt(D) in bfloat16, as in training."""
        return round_to_bfloat16(math.sqrt(self.hidden_dim)) if self.scale_embeddings else 1.0

    @property
    def parameter_count(self) -> int:
        """Computes the number of weights from the sizes alone."""
        d, m, l = self.hidden_dim, self.intermediate_dim, self.recurrence_width
        queries = self.num_query_heads * self.key_size
        keys = self.num_key_value_heads * self.key_size
        gate = l * (l // self.num_query_heads) + l
        temporal = {
            RECURRENT: 2 * (d * l + l) + (l * d + d) + (self.conv_width + 1) * l + 2 * gate + l,
            ATTENTION: d * queries + 2 * d * keys + queries * d + d,
        }
        mlp_and_norms = 2 * (d * m + m) + (m * d + d) + 2 * d
        sizes = [temporal[block_type] + mlp_and_norms for block_type in self.block_types]
        cycles, rest = divmod(self.num_layers, len(sizes))
        layers = cycles * sum(sizes) + sum(sizes[:rest])
        return self.vocabulary_size * d + layers + d

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a plain dict of JSON types."""
        return {**dataclasses.asdict(self), "block_types": list(self.block_types)}


def _is_finite_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def check_count(name: str, value: Any) -> int:
    """Returns a positive whole number as an int.

    Raises:
        ValueError: the value is not one; the message names the argument.
    """
    try:
        count = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}.")
    return count


def round_to_bfloat16(value: float) -> float:
    """Rounds a float to the nearest bfloat16 number (ties to even), as a float."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return struct.unpack("<f", struct.pack("<I", bits))[0]
