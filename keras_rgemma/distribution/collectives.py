"""Lists what the devices of a compiled program send each other."""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_BITS = {"pred": 8, "bf16": 16, "token": 0}  # other types have their bits in their name
# A result (an array, or a tuple of them), and the name of the instruction, which may be the first
# half of an asynchronous one; the second half (`-done`) repeats the result.
_INSTRUCTION = re.compile(
    r"= (?P<result>\(.*?\)|\S+) (?P<kind>" + "|".join(KINDS) + r")(?P<start>-start)?\((?P<rest>.*)"
)
_ARRAY = re.compile(r"(?P<dtype>[a-z]+\d*\w*)\[(?P<shape>[\d,]*)\]")
_GROUPS = re.compile(
    r"replica_groups=(?:\{\{(?P<first>[\d,]*)\}|\[(?P<counts>[\d,]+)\]<="
    r"|mesh\[(?P<mesh>[^\]]*)\](?:, device_ids=\([^{]*\))? \{(?P<axes>[^}]*)\})"
)
_AXIS = re.compile(r"'(?P<name>\w+)'(?:=(?P<size>\d+)|:\(\d+\)(?P<part>\d+))?")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.-]+) \(.*-> (?P<result>.*) \{$")
# A TPU sums and divides an array in one such computation, which has an all-reduce and a slice.
_REDUCE_SCATTER = "all-reduce-scatter"
# One operation that a TPU runs beside others has a part in the computation of each of them.
_PART = re.compile(r"channel_id=(?P<channel>\d+),.*chain_id=")
_OP_NAME = re.compile(r'op_name="(?P<name>[^"]*)"')


class Array(NamedTuple):
    """Describes an array on one device.

    Attributes:
        dtype: str, of XLA ("f32", "bf16", "s8", ...).
        shape: tuple of ints.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Returns the bytes of the array, int."""
        bits = _BITS.get(self.dtype) or int(re.search(r"\d+", self.dtype).group())
        return math.prod(self.shape) * bits // 8


class Collective(NamedTuple):
    """Describes a collective operation of a compiled program.

    Attributes:
        kind: str of `KINDS`.
        arrays: tuple of `Array`, its results on one device; XLA joins several small ones.
        devices: int, how many devices take part together; None for pairs (a permutation) and where
            the program does not say.
        computation: str, the part of the program that runs it, such as the body of a loop.
        op_name: str, the operation of JAX that it comes from.
    """

    kind: str
    arrays: tuple[Array, ...]
    devices: int | None
    computation: str
    op_name: str

    @property
    def nbytes(self) -> int:
        """Returns the bytes of the results on one device, int."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def shapes(self) -> str:
        """Returns the dtypes and shapes of the results, a str."""
        return ", ".join(f"{array.dtype}{list(array.shape)}" for array in self.arrays)


def collectives(text: str) -> list[Collective]:
    """Lists the collective operations of a compiled program in their order.

    An operation in a loop is listed once.

    Args:
        text: str, `compiled.as_text()` of a `jax.stages.Compiled`.

    Returns:
        A list of `Collective`.

    Example:
    ```python
    compiled = jax.jit(lambda x: x + 1).lower(np.ones(3)).compile()
    collectives(compiled.as_text())  # []
    ```
    """
    found, computation, channels = [], "", set()
    for line in text.splitlines():
        if begins := _COMPUTATION.match(line.strip()):
            computation, computed = begins["name"], begins["result"]
        if not (instruction := _INSTRUCTION.search(line)):
            continue
        if part := _PART.search(line):
            if part["channel"] in channels:
                continue
            channels.add(part["channel"])
        kind, arrays = instruction["kind"], _arrays(instruction["result"])
        if kind == "all-reduce" and computation.startswith(_REDUCE_SCATTER):
            kind, arrays = "reduce-scatter", _arrays(computed)
        if instruction["start"] and kind != "all-reduce":
            arrays = _results_of_start(arrays)
        name = _OP_NAME.search(line)
        found.append(
            Collective(
                kind,
                tuple(arrays),
                _group_size(line),
                computation,
                name["name"] if name else "",
            )
        )
    return found


def _arrays(result: str) -> list[Array]:
    return [
        Array(x["dtype"], tuple(int(n) for n in x["shape"].split(",") if n))
        for x in _ARRAY.finditer(result)
    ]


def _results_of_start(arrays: list[Array]) -> list[Array]:
    """Leaves out the operands of an asynchronous operation, which its result repeats."""
    arrays = [array for array in arrays if array.shape or array.dtype != "u32"]
    return arrays[len(arrays) // 2 :] if len(arrays) > 1 else arrays


def _group_size(line: str) -> int | None:
    groups = _GROUPS.search(line)
    if groups is None:
        return None
    if groups["mesh"] is not None:  # axes of a mesh, or a part of one as 'name':(before)size
        sizes = {axis["name"]: int(axis["size"]) for axis in _AXIS.finditer(groups["mesh"])}
        axes = _AXIS.finditer(groups["axes"])
        return math.prod(int(axis["part"] or sizes[axis["name"]]) for axis in axes)
    if groups["counts"] is not None:
        return int(groups["counts"].split(",")[-1])
    return len(groups["first"].split(",")) if groups["first"] else None


def counted(operations: Iterable[Collective]) -> dict[Collective, int]:
    """Joins equal collective operations.

    Args:
        operations: list of `Collective`.

    Returns:
        dict of `Collective`, without the place in the program, to how many there are; in the order
        of the first ones.
    """
    counts = {}
    for operation in operations:
        key = operation._replace(computation="", op_name="")
        counts[key] = counts.get(key, 0) + 1
    return counts


def table(operations: Iterable[Collective]) -> str:
    """Writes collective operations as lines, equal ones joined with their count.

    Args:
        operations: list of `Collective`.

    Returns:
        str, a line for each kind and shape with its bytes.
    """
    return "\n".join(
        f"{count} x {x.kind} of {x.shapes} among {x.devices}: {count * x.nbytes:,} bytes"
        for x, count in sorted(counted(operations).items(), key=lambda pair: str(pair[0][:3]))
    )
