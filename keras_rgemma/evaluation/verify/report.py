"""Writes what `verify` found as Markdown, to be pasted into an issue."""

import dataclasses

import numpy as np

from keras_rgemma.evaluation.verify.compare import LOGITS, Comparison
from keras_rgemma.evaluation.verify.observation import EMBEDDING, FINAL_NORM, Observation

LARGEST_FLOAT16 = 65504.0
_CLOSE = 4  # an activation nearer to the largest number than this may overflow on another text


@dataclasses.dataclass(frozen=True)
class Report:
    """Holds what `verify` found. `print` it for Markdown; its last line is the verdict.

    Attributes:
        about: dict of str, the facts at the top: preset, source, versions, devices, dtype.
        comparisons: dict of a backend to its `Comparison` with the reference.
        peaks: dict of a layer ("embedding", "block_0", ..., "final_norm", "logits") to a pair: the
            largest absolute activation in it, a float, and the path of the part that has it, a str.
    """

    about: dict[str, str]
    comparisons: dict[str, Comparison]
    peaks: dict[str, tuple[float, str]]

    @property
    def is_equal(self) -> bool:
        """Returns whether every backend computes what the reference does."""
        return all(x.verdict == "equal" for x in self.comparisons.values())

    @property
    def verdict(self) -> str:
        """Returns "equal", or "different: " and what differs first, str."""
        verdicts = {backend: x.verdict for backend, x in self.comparisons.items()}
        wrong = {backend: verdict for backend, verdict in verdicts.items() if verdict != "equal"}
        if not wrong:
            return "equal"
        first = next(iter(wrong.values()))
        alike = [backend for backend, verdict in wrong.items() if verdict == first]
        where = "" if len(alike) == len(verdicts) else f", on {' and '.join(alike)}"
        return first + where

    @property
    def float16(self) -> str:
        """Returns a sentence that says whether float16 can hold the activations, str."""
        peak, path = max(self.peaks.values())
        words = f"The largest activation, {peak:,.4g}, is in {path}"
        if not peak < LARGEST_FLOAT16:
            return (
                f"{words}, above float16's largest number, 65,504: in float16, as on a T4, this "
                "model overflows. Use float32 there, or a device with bfloat16."
            )
        times = f"{words}, {_times(peak)} times below 65,504"
        if peak * _CLOSE > LARGEST_FLOAT16:
            return f"{times}: in float16, as on a T4, another text may overflow."
        return f"{times}: these texts fit into float16, as on a T4."

    def __str__(self) -> str:
        backends = list(self.comparisons)
        facts = [f"| {name} | {value} |" for name, value in self.about.items()]
        return "\n".join(
            [
                "| | |",
                "|---|---|",
                *facts,
                "",
                *self._layers(backends),
                "",
                *self._texts(backends),
                "",
                self.float16,
                "",
                self.verdict,
            ]
        )

    def _layers(self, backends: list[str]) -> list[str]:
        lines = [
            _row("layer", *backends, "state", "largest activation", "65,504 / activation"),
            _row(*["---"] + ["---:"] * (len(backends) + 3)),
        ]
        for number, layer in enumerate(self.comparisons[backends[0]].layers):
            same = [self.comparisons[backend].layers[number] for backend in backends]
            state = "" if layer.state is None else _error(max(x.state for x in same))
            peak, _ = self.peaks.get(layer.name, (None, ""))
            activation = ("", "") if peak is None else (f"{peak:,.4g}", _times(peak))
            lines.append(_row(layer.name, *(_error(x.output) for x in same), state, *activation))
        return lines

    def _texts(self, backends: list[str]) -> list[str]:
        first = self.comparisons[backends[0]]
        lines = [_row("text", *backends), _row(*["---"] + ["---:"] * len(backends))]
        for name in first.texts:
            errors = (_error(self.comparisons[backend].texts[name]) for backend in backends)
            lines.append(_row(f"{name}, logits", *errors))
        for number in range(len(first.greedy)):
            words = (_words(self.comparisons[backend].greedy[number]) for backend in backends)
            lines.append(_row(f"greedy text {number}", *words))
        return lines


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _error(error: float) -> str:
    return f"{error:.1e}"


def _times(peak: float) -> str:
    times = LARGEST_FLOAT16 / max(peak, 1e-30)
    return f"{times:,.0f}" if times >= 100 else f"{times:.3g}"


def _words(text: dict) -> str:
    if text["at"] is None:
        return "equal"
    return f"{'a tie' if text['equal'] else 'different'} at token {text['at']}"


def peaks_of(observation: Observation) -> dict[str, tuple[float, str]]:
    """Finds the largest activation of each layer, as of `Report.peaks`."""
    found: dict[str, tuple[float, str]] = {}
    for name in observation.names("peaks"):
        path = name.removeprefix("peaks/")
        layer = path.removeprefix("the input of ").split("/")[0]
        layer = "token_embedding" if layer == EMBEDDING else layer
        peak = (float(observation.arrays[name]), path)
        found[layer] = max(peak, found.get(layer, peak))
    logits = max(np.abs(observation.arrays[f"{x}/logits"]).max() for x in ("short", "long"))
    assert {"token_embedding", FINAL_NORM} <= set(found)
    return {**found, LOGITS: (float(logits), LOGITS)}
