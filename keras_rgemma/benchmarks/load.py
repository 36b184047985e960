"""Memory and time of loading a checkpoint at full size, on each backend.

    python -m keras_rgemma.benchmarks.load --preset rgemma_2b_en --folder big/2b
    python -m keras_rgemma.benchmarks.load --preset rgemma_9b_en --folder big/9b

Random bfloat16 weights are written into the folder in the published layout of Hugging Face, unless
they are there already. Each backend then loads them in a process of its own, and generates a token.
The peak is that of the process while it loads, less what it held after its imports. The time is
compared with reading every tensor, transposing those whose layout differs and copying the others
once with NumPy, measured in the same process right before. The last line is the same as JSON.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import time

BACKENDS = ("jax", "tensorflow", "torch")


def resident(field):
    """The memory of this process in bytes: `VmRSS` now, `VmHWM` at its peak. On Linux."""
    status = pathlib.Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def reset_peak():
    """Lets `VmHWM` start from what the process holds now."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def write_random(folder, config):
    """Writes random weights as Hugging Face publishes them, 9B with its copy of the embedding."""
    import ml_dtypes
    import numpy as np

    from keras_rgemma.checkpoints import huggingface, names, saving

    noise = np.random.RandomState(0).standard_normal(1 << 22).astype("float32")

    def tensors():
        for name, (shape, _) in names.tensors(config, "huggingface").items():
            value = np.resize(noise, shape) / math.sqrt(shape[-1])
            if name.endswith("recurrent_param"):
                value = value - 4  # a decay near 1, as in trained models
            yield name, value.astype(ml_dtypes.bfloat16)
            if name == "model.embed_tokens.weight" and config.num_layers == 38:
                yield names.LM_HEAD, value.astype(ml_dtypes.bfloat16)

    with saving.new_folder(folder) as partial:
        huggingface.write_json(
            partial / huggingface.CONFIG, huggingface.config_of(config, "bfloat16")
        )
        huggingface.write(partial, tensors())


def floor_seconds(folder, config):
    """Seconds to read every tensor and to transpose or copy it once, with NumPy."""
    import numpy as np

    from keras_rgemma.checkpoints import huggingface, names
    from keras_rgemma.checkpoints.transforms import SAME

    source = huggingface.SafetensorsFolder(folder)
    start = time.perf_counter()
    for name, (_, (weight,)) in names.tensors(config, source.format).items():
        array = source.read(name)
        transform = weight.place(source.format).transform
        if transform is SAME:
            array.copy()
        else:
            np.ascontiguousarray(transform.from_file(array))
    return time.perf_counter() - start


def measure(folder):
    """What one backend needs, as a dict."""
    import keras
    import numpy as np

    import keras_rgemma
    from keras_rgemma.checkpoints.folder import open_checkpoint

    __import__(keras.config.backend())
    config = open_checkpoint(folder).config
    floor = floor_seconds(folder, config)
    before = resident("VmRSS")
    reset_peak()
    start = time.perf_counter()
    lm = keras_rgemma.RGemmaCausalLM.from_preset(folder, dtype="bfloat16")
    seconds = time.perf_counter() - start
    peak = resident("VmHWM") - before
    result = {
        "seconds": seconds,
        "floor_seconds": floor,
        "model_bytes": 2 * config.parameter_count,
        "peak_bytes": peak,
    }
    start = time.perf_counter()
    prompt = {"token_ids": np.array([[2, 3, 4, 5]])}
    out = lm.generate(prompt, max_new_tokens=1, stop_token_ids=None)
    result["token"] = int(np.asarray(out["token_ids"])[0, 4])
    result["token_seconds"] = time.perf_counter() - start
    result["token_peak_bytes"] = resident("VmHWM") - before
    return result


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="rgemma_2b_en", help="its architecture is taken")
    parser.add_argument("--folder", required=True, help="of the weights; made if it is not there")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.folder)))
        return
    if not pathlib.Path(args.folder).exists():
        from keras_rgemma.config import RGemmaConfig
        from keras_rgemma.model.presets import presets

        saved = json.loads(
            (pathlib.Path(presets()[args.preset]["path"]) / "config.json").read_text()
        )
        fields = {k: v for k, v in saved["config"].items() if k in RGemmaConfig.__match_args__}
        write_random(args.folder, RGemmaConfig(**fields))
    results = []
    columns = "{:<11}{:>10}{:>10}{:>8}{:>10}{:>12}{:>12}{:>10}{:>12}"
    print(
        columns.format(
            "backend",
            "seconds",
            "floor s",
            "ratio",
            "model GB",
            "peak GB",
            "above GB",
            "token s",
            "its peak GB",
        )
    )
    for backend in args.backends:
        command = [sys.executable, "-m", "keras_rgemma.benchmarks.load", "--measure", "--folder"]
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(
            [*command, args.folder], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            print(backend, done.returncode, done.stderr[-2000:])
            continue
        r = json.loads(done.stdout.strip().splitlines()[-1])
        results.append({"backend": backend, **r})
        print(
            columns.format(
                backend,
                f"{r['seconds']:.1f}",
                f"{r['floor_seconds']:.1f}",
                f"{r['seconds'] / r['floor_seconds']:.2f}",
                f"{r['model_bytes'] / 1e9:.2f}",
                f"{r['peak_bytes'] / 1e9:.2f}",
                f"{(r['peak_bytes'] - r['model_bytes']) / 1e9:.2f}",
                f"{r['token_seconds']:.1f}",
                f"{r['token_peak_bytes'] / 1e9:.2f}",
            ),
            flush=True,
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
