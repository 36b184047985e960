"""Measures memory and time of loading a checkpoint at full size, on each backend.

    python -m keras_rgemma.benchmarks.load --preset rgemma_2b_en --folder big/2b
    python -m keras_rgemma.benchmarks.load --preset rgemma_9b_en --folder big/9b --cold
    python -m keras_rgemma.benchmarks.load --preset rgemma_9b_en --folder big/9b --quantize int4

Random bfloat16 weights are written into the folder in the published layout of Hugging Face, unless
the folder exists; it may also be a Keras preset. Each backend then loads them in a process of its
own, and generates a token. The peak is the memory of the process while it loads, less its memory
after its imports. The time is compared with reading every tensor, transposing those whose layout
differs and copying the others once with NumPy, measured in the same process right before. The last
line is the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import keras
import ml_dtypes
import numpy as np

import keras_rgemma
from keras_rgemma.backend import BACKENDS
from keras_rgemma.benchmarks.machine import in_child, reset_peak, resident_bytes, versions
from keras_rgemma.checkpoints import huggingface, names, safetensors
from keras_rgemma.checkpoints.folder import open_checkpoint
from keras_rgemma.checkpoints.presets import presets
from keras_rgemma.checkpoints.tensors.arrays import in_rows
from keras_rgemma.checkpoints.transforms import SAME
from keras_rgemma.config import RGemmaConfig
from keras_rgemma.files import new_folder, write_json
from keras_rgemma.types import StrPath


def architecture(preset: str) -> RGemmaConfig:
    """Reads the `RGemmaConfig` of a preset."""
    path = pathlib.Path(presets()[preset]["path"]) / "config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))["config"]
    return RGemmaConfig(**{name: saved[name] for name in RGemmaConfig.__match_args__})


def write_random(folder: StrPath, config: RGemmaConfig) -> None:
    """Writes random weights as Hugging Face publishes them, 9B with its copy of the embedding."""
    noise = np.random.RandomState(0).standard_normal(1 << 22).astype("float32")

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, (shape, _) in names.tensors(config, "huggingface").items():
            value = np.resize(noise, shape) / math.sqrt(shape[-1])
            if name.endswith("recurrent_param"):
                value = value - 4  # a decay near 1, as in trained models
            yield name, value.astype(ml_dtypes.bfloat16)
            if name == "model.embed_tokens.weight" and config.num_layers == 38:
                yield names.LM_HEAD, value.astype(ml_dtypes.bfloat16)

    with new_folder(folder) as partial:
        write_json(partial / huggingface.CONFIG, huggingface.config_of(config, "bfloat16"))
        safetensors.write(partial, tensors())


def forget(folder: StrPath) -> None:
    """Takes the files of a folder out of the page cache."""
    for path in pathlib.Path(folder).iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def floor_seconds(folder: StrPath) -> float:
    """Measures the seconds to read every tensor and to transpose or copy it once."""
    start = time.perf_counter()
    if not (checkpoint := open_checkpoint(folder)):
        for path in pathlib.Path(folder).glob("model*.weights.h5"):
            _read_all(path)
        return time.perf_counter() - start
    source = safetensors.SafetensorsFolder(folder)
    for name, (_, (weight,)) in names.tensors(checkpoint.config, source.format).items():
        array = source.read(name)
        transform = weight.place(source.format).transform
        _ = array.copy() if transform is SAME else in_rows(transform.from_file(array))
    return time.perf_counter() - start


def _read_all(path: StrPath) -> None:
    """Reads every array of a file of Keras weights."""
    with h5py.File(path) as file:
        arrays = []
        file.visititems(lambda _, item: arrays.append(item))
        for item in arrays:
            if isinstance(item, h5py.Dataset):
                _ = item[()]


def measure(folder: StrPath, cold: bool, quantize: str | None) -> dict[str, Any]:
    """Measures the time and memory of loading on this backend, as a dict."""
    __import__(keras.config.backend())
    before = resident_bytes("VmRSS")
    if not cold:
        floor_seconds(folder)  # so that both readings find the same files in the page cache
    prepare = forget if cold else lambda folder: None
    prepare(folder)
    floor = floor_seconds(folder)
    prepare(folder)
    reset_peak()
    start = time.perf_counter()
    lm = keras_rgemma.RGemmaCausalLM.from_preset(folder, dtype="bfloat16", quantize=quantize)
    seconds = time.perf_counter() - start
    peak = resident_bytes("VmHWM") - before
    result = {
        "seconds": seconds,
        "floor_seconds": floor,
        "model_bytes": sum(
            math.prod(weight.shape) * np.dtype(weight.dtype).itemsize for weight in lm.weights
        ),
        "peak_bytes": peak,
    }
    start = time.perf_counter()
    prompt = {"token_ids": np.array([[2, 3, 4, 5]])}
    out = lm.generate(prompt, max_new_tokens=1, stop_token_ids=None)
    result["token"] = int(np.asarray(out["token_ids"])[0, 4])
    result["token_seconds"] = time.perf_counter() - start
    result["token_peak_bytes"] = resident_bytes("VmHWM") - before
    return result


COLUMNS = "{:<11}{:>8}{:>8}{:>7}{:>10}{:>9}{:>10}{:>9}{:>9}"


def row(result: Mapping[str, Any]) -> str:
    """Writes the line of a result in the table."""
    return COLUMNS.format(
        result["backend"],
        *(f"{result[name]:.1f}" for name in ("seconds", "floor_seconds")),
        f"{result['seconds'] / result['floor_seconds']:.2f}",
        *(f"{result[name] / 1e9:.2f}" for name in ("model_bytes", "peak_bytes")),
        f"{(result['peak_bytes'] - result['model_bytes']) / 1e9:.2f}",
        f"{result['token_seconds']:.1f}",
        f"{result['token_peak_bytes'] / 1e9:.2f}",
    )


def options(description: str | None) -> argparse.ArgumentParser:
    """Makes a parser with the options of every measurement at full size."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="rgemma_2b_en", help="the preset with the architecture")
    parser.add_argument("--folder", required=True, help="of the weights; made if it does not exist")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    return parser


def main() -> None:
    parser = options(__doc__)
    parser.add_argument(
        "--cold",
        action="store_true",
        help="take the files out of the page cache before each reading, as if they did not fit",
    )
    parser.add_argument(
        "--quantize", choices=("int8", "int4"), help="round the weights while they are loaded"
    )
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.folder, args.cold, args.quantize)))
        return
    if not pathlib.Path(args.folder).exists():
        write_random(args.folder, architecture(args.preset))
    print(f"cpus {os.cpu_count()}, versions {versions()}\n")
    print(
        COLUMNS.format(
            *("backend", "load s", "floor s", "ratio", "model GB", "peak GB", "above GB"),
            *("token s", "peak GB"),
        )
    )
    arguments = ["--measure", "--folder", args.folder, *(["--cold"] if args.cold else [])]
    arguments += ["--quantize", args.quantize] if args.quantize else []
    results = []
    for backend in args.backends:
        result = {"backend": backend, **in_child(backend, __spec__.name, *arguments)}
        results.append(result)
        print(f"{backend:<11}{result['error']}" if "error" in result else row(result), flush=True)
    print("\n" + json.dumps(results))
    sys.exit(any("error" in result for result in results))


if __name__ == "__main__":
    main()
