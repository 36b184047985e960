"""Compares a checkpoint in this package with the reference implementation: `verify`."""

import dataclasses
import importlib.metadata
import importlib.util
import pathlib
import sys
import time
from collections.abc import Sequence

from keras_rgemma.backend import check_backend
from keras_rgemma.checkpoints.folder import open_checkpoint, read_tokenizer
from keras_rgemma.checkpoints.hub import WEIGHTS
from keras_rgemma.checkpoints.presets import has_tokenizer, resolve_model
from keras_rgemma.choices import BACKENDS
from keras_rgemma.config import RGemmaConfig
from keras_rgemma.evaluation.verify import memory
from keras_rgemma.evaluation.verify.compare import TOLERANCES, compare
from keras_rgemma.evaluation.verify.job import Job
from keras_rgemma.evaluation.verify.observation import Observation
from keras_rgemma.evaluation.verify.processes import Processes
from keras_rgemma.evaluation.verify.report import Report, peaks_of
from keras_rgemma.evaluation.verify.texts import Material, make_material
from keras_rgemma.keras_internals.presets import preset_config
from keras_rgemma.model.tokenizer import RGemmaTokenizer

__all__ = ["Report", "verify"]

# Of a reference: the packages that it needs, and the format into which a Keras preset is written.
_REFERENCES = {
    "recurrentgemma": (("recurrentgemma", "jax", "flax"), "flax"),
    "transformers": (("transformers", "torch"), "transformers"),
}


def verify(
    preset: str,
    *,
    against: str | None = None,
    reference: str = "auto",
    dtype: str = "float32",
    backends: Sequence[str] | None = None,
    revision: str | None = None,
    new_tokens: int = 32,
    check_memory: bool = True,
    progress: bool = True,
) -> Report:
    """Runs a checkpoint here and in the reference implementation, and compares what they compute.

    On fixed texts (short, longer than the window, left-padded, packed) it compares tokens, the
    output of every layer, the state of every layer after each text, logits, and greedy texts.
    Each implementation and each backend has a process of its own, one after the other, so that one
    model at a time is in memory.

    Args:
        preset: str, a preset, folder or handle, as of `RGemmaCausalLM.from_preset`.
        against: str, another one for the reference, such as Google's own checkpoint beside one that
            was converted from it. None for the same.
        reference: str: "recurrentgemma", DeepMind's package on JAX; "transformers", which is right
            up to W tokens and without pads, so less is compared; or "auto", the first of the two
            that is installed.
        dtype: str of weights and computation: "float32", in which the comparison is sharp,
            "bfloat16" or "float16".
        backends: sequence of str, the backends of Keras to run here; None for all that are
            installed, the current one first.
        revision: str, of a preset on a hub.
        new_tokens: int, tokens of each greedy text; 0 for no greedy texts.
        check_memory: bool, whether a model that does not fit is refused before it is loaded.
        progress: bool, whether lines about the progress go to standard error.

    Returns:
        `Report`. `print` it for Markdown; `report.verdict` is "equal" or says what differs first.

    Raises:
        ValueError: the preset or its weights do not exist or are broken, an argument is unknown, or
            the reference has no equivalent for a setting of the model.
        ImportError: the reference or a backend is not installed.
        RuntimeError: there is too little memory, or a process failed.

    Example:
    ```python
    from keras_rgemma.evaluation.verify import verify

    report = verify("rgemma_2b_en")
    print(report)
    report.is_equal, report.verdict
    ```
    """
    if dtype not in TOLERANCES:
        raise ValueError(f"`dtype` must be one of {list(TOLERANCES)}. Received: {dtype!r}.")
    if new_tokens < 0:
        raise ValueError(f"`new_tokens` must be 0 or more. Received: {new_tokens!r}.")
    chosen = _choose_backends(backends)
    reference = _choose_reference(reference)
    folder = _resolve(preset, revision)
    other = folder if against is None else _resolve(against)
    config = _config(folder)
    if against is not None:
        _check_same_architecture(config, _config(other), against)
    tokenizer = _tokenizer(folder)
    material = make_material(tokenizer, config.vocabulary_size, config.sliding_window_size)
    if not new_tokens:
        material = material._replace(prompts=[])
    needed = memory.needed_bytes(config, dtype, material.batches)
    say = _Progress(len(chosen) + 1, progress)
    copies = 0
    if reference == "recurrentgemma":
        copies = memory.copies_on_cpu(config, dtype, new_tokens > 0)
    say.line(
        f"One model at a time is in memory: {needed / 1e9:.1f} GB in {dtype}"
        + (f", {(needed + copies) / 1e9:.1f} GB if the reference runs on a CPU." if copies else ".")
    )

    def job(kind: str, place: str) -> Job:
        limit, more = (needed if check_memory else None), (copies if kind == reference else 0)
        return Job(kind, place, dtype, config, material, new_tokens, limit, more)

    with Processes() as processes:
        target = _in_format(other, reference, processes, say)
        asked = job(reference, target)
        with say.step(f"{reference} on {asked.backend}"):
            theirs = processes.run(asked, asked.backend)
        comparisons, found = {}, {}
        for backend in chosen:
            with say.step(f"keras-rgemma on {backend}"):
                ours = found[backend] = processes.run(job("ours", folder), backend)
            comparisons[backend] = compare(ours, theirs, material, config.layer_types, dtype)
        about = {
            "preset": preset,
            "source": _source(folder),
            "sizes": f"{config.num_layers} layers, {config.parameter_count:,} parameters",
            **({"compared with": f"{against}, {_source(other)}"} if against else {}),
            "reference": _versions(theirs),
            "its weights": _weights_fact(target == other),
            **{backend: _versions(x) for backend, x in found.items()},
            "tokenizer": _tokenizer_fact(theirs, material),
            "dtype": f"{dtype}; differences up to {TOLERANCES[dtype]:g} are rounding",
        }
        return Report(about, comparisons, peaks_of(found[chosen[0]]))


def _versions(observation: Observation) -> str:
    about = observation.about
    return f"{about['versions']}; {about['device']}, Python {about['python']}, {about['system']}"


def _weights_fact(is_read: bool) -> str:
    if is_read:
        return "read from the checkpoint by the reference's own names"
    return "written by this package for the reference, so names are not compared"


def _tokenizer_fact(reference: Observation, material: Material) -> str:
    if "tokens/0" in reference.arrays:
        return f"compared with SentencePiece's on {len(material.texts)} texts"
    return "not compared" if material.texts else "none; the texts are random tokens"


def _choose_backends(backends: Sequence[str] | None) -> list[str]:
    if backends is None:
        order = sorted(BACKENDS, key=lambda name: name != check_backend())
        return [name for name in order if importlib.util.find_spec(name)]
    for name in backends:
        if name not in BACKENDS:
            raise ValueError(f"A backend is one of {BACKENDS}. Received: {name!r}.")
        if not importlib.util.find_spec(name):
            raise ImportError(
                f"The backend {name!r} is not installed. Run `pip install "
                f'"keras-rgemma[{name}]"`, or choose others.'
            )
    if not backends:
        raise ValueError("`backends` must name at least one backend. Received: none.")
    return list(dict.fromkeys(backends))


def _choose_reference(reference: str) -> str:
    """Returns the name of a reference that is installed."""
    if reference not in ("auto", *_REFERENCES):
        raise ValueError(
            f"`reference` must be 'auto' or one of {list(_REFERENCES)}. Received: {reference!r}."
        )
    names = list(_REFERENCES) if reference == "auto" else [reference]
    for name in names:
        packages, _ = _REFERENCES[name]
        if all(map(importlib.util.find_spec, packages)):
            return name
    raise ImportError(
        f"The reference implementation {' or '.join(map(repr, names))} is not installed. Run `pip "
        'install "keras-rgemma[reference]"`, which installs both.'
    )


def _resolve(preset: str, revision: str | None = None) -> str:
    """Fetches a preset, and returns the folder of its weights."""
    folder, adapter = resolve_model(preset, WEIGHTS, revision)
    if adapter:
        raise ValueError(
            f"{str(preset)!r} is an adapter, which the reference does not read. Verify its base, "
            "or merge the adapter (`lm.backbone.merge_lora()`) and save the model."
        )
    if checkpoint := open_checkpoint(folder):
        checkpoint.open_weights()  # a missing file is named before anything is loaded
    return folder


def _config(folder: str) -> RGemmaConfig:
    """Reads the architecture of a checkpoint."""
    if checkpoint := open_checkpoint(folder):
        return checkpoint.config
    names = {field.name for field in dataclasses.fields(RGemmaConfig)}
    contents = preset_config(folder)["config"]
    return RGemmaConfig(**{name: x for name, x in contents.items() if name in names})


def _check_same_architecture(config: RGemmaConfig, other: RGemmaConfig, against: str) -> None:
    """Raises ValueError if the tokens or the layers of two models are not alike."""
    sizes = ("vocabulary_size", "hidden_dim", "layer_types", "recurrence_width")
    for name in sizes:
        found, expected = getattr(other, name), getattr(config, name)
        if found != expected:
            raise ValueError(
                f"`{name}` is {expected!r} in the preset and {found!r} in {str(against)!r}: these "
                "are different architectures. Choose the checkpoint that the preset was made of."
            )


def _tokenizer(folder: str) -> RGemmaTokenizer | None:
    """Loads the tokenizer of a checkpoint; returns None without one."""
    is_there = read_tokenizer(folder) if open_checkpoint(folder) else has_tokenizer(folder)
    return RGemmaTokenizer.from_preset(folder) if is_there else None


def _in_format(folder: str, reference: str, processes: Processes, say: "_Progress") -> str:
    """Returns a checkpoint that a reference reads: as it is, or written anew for it."""
    checkpoint = open_checkpoint(folder)
    if checkpoint:
        is_theirs = checkpoint.open_weights().format == "huggingface"
        if reference == "recurrentgemma" or is_theirs:
            return folder
    _, format = _REFERENCES[reference]
    target = processes.new_folder() / "checkpoint"
    config = _config(folder)
    with say.step(f"writing the weights for {reference}", is_counted=False):
        job = Job("convert", folder, "", config, target=str(target), format=format)
        processes.run(job, check_backend())
    return str(target)


def _source(folder: str) -> str:
    """Describes where weights lie, without the folders of this machine."""
    checkpoint = open_checkpoint(folder)
    format = checkpoint.open_weights().format if checkpoint else "keras"
    parts = pathlib.Path(folder).parts
    commit = parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None
    return f"format {format}" + (f", commit {commit}" if commit else "")


class _Progress:
    """Writes numbered lines about steps to standard error.

    Args:
        count: int, the steps.
        is_shown: bool.
    """

    def __init__(self, count: int, is_shown: bool) -> None:
        self.count, self.is_shown, self.number = count, is_shown, 0
        self._words, self._start = "", 0.0

    def line(self, words: str) -> None:
        if self.is_shown:
            print(words, file=sys.stderr, flush=True)

    def step(self, words: str, is_counted: bool = True) -> "_Progress":
        """Returns a context that says when a step begins and how long it took."""
        self.number += is_counted
        self._words = f"[{self.number}/{self.count}] {words}"
        return self

    def __enter__(self) -> None:
        self._start = time.monotonic()
        self.line(f"{self._words} ...")

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.line(f"{self._words}: {time.monotonic() - self._start:.0f} s")
