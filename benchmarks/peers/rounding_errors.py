"""Measures errors of rounding on the backend of KERAS_BACKEND: the child of rounding.py.

    KERAS_BACKEND=jax python benchmarks/peers/rounding_errors.py truth 110m folder --data DATA
    KERAS_BACKEND=torch python benchmarks/peers/rounding_errors.py logits 110m folder --data DATA
    KERAS_BACKEND=torch python benchmarks/peers/rounding_errors.py bits --data DATA

`truth` writes into the folder a model, a text and its logits in float64, and measures DeepMind's
code, on JAX; `logits` measures this project's model by these files. `bits` measures bits per byte
of the preset. The last line is the result as JSON.
"""

import argparse
import dataclasses
import gc
import json
import math
import pathlib
import sys

# The float64 model, DeepMind's with our weights, and random weights without zeros are those of the
# tests; rows of a held-out stream are those of the training.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "tests"))
sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "examples/train_rgemma_tiny"))

import keras
import numpy as np
import train

import keras_rgemma
import tiny
from keras_rgemma.benchmarks.load import architecture
from keras_rgemma.benchmarks.measure import SIZES, tokens

PRESET = "rgemma_tiny_en"
# The first three blocks of 2B, two recurrent ones and one of attention, with few embeddings.
SLICE = dataclasses.asdict(architecture("rgemma_2b_en")) | {
    "num_layers": 3,
    "vocabulary_size": 8192,
}
RANDOM = {"110m": SIZES["110m"], "2b slice": SLICE, "tiny": SIZES["tiny"]}
MODELS = (PRESET, *RANDOM)
# Arguments of `from_preset`.
VARIANTS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "float32", "quantize": "int8"},
    "int4": {"dtype": "float32", "quantize": "int4"},
}
CALIBRATED = ("gptq", "awq")
SOURCES = ("wordnet", "bible")

_SAMPLES, _SAMPLE_TOKENS = 64, 256  # of a calibration
_ROWS = 8  # of a call of `score`


def error(logits, truth):
    """Compares logits with those in float64.

    Args:
        logits: float array [T, V].
        truth: float64 [T, V].

    Returns:
        dict of the root-mean-square error `rms` and the largest error `max`, both as shares of the
        root mean square of the true logits.
    """
    difference, scale = logits - truth, np.sqrt(np.mean(np.square(truth)))
    return {
        "rms": float(np.sqrt(np.mean(np.square(difference))) / scale),
        "max": float(np.max(np.abs(difference)) / scale),
    }


def text_of(model, vocabulary_size, window, data):
    """Makes the token ids of a text that is longer than the window by half.

    Args:
        model: str of `MODELS`.
        vocabulary_size: int.
        window: int, tokens that attention sees.
        data: `pathlib.Path`, the folder of prepare.py: the preset reads the longest held-out
            chapter of the Bible, models with random weights read random tokens.
    """
    if model != PRESET:
        return tokens(vocabulary_size, 1, window * 3 // 2)[0]
    stream = np.load(data / "heldout_bible.npy")
    chapters = np.split(stream, np.flatnonzero(stream == train.END) + 1)
    return max(chapters, key=len).astype("int64")


def write_truth(model, folder, data):
    """Writes a model, a text and its logits in float64 into a folder; measures DeepMind's errors.

    Returns:
        dict of the number of `parameters`, `tokens` and tokens of the `window`, and the `errors`
        by dtype.
    """
    import jax

    from parity import deepmind
    from parity.float64 import Reference
    from parity.random_models import random_lm, set_random_weights

    if model == PRESET:
        lm = keras_rgemma.RGemmaCausalLM.from_preset(PRESET, dtype="float32")
    else:
        lm = random_lm(seed=0, **RANDOM[model])
        # As published weights are: then bfloat16 rounds in the computation alone.
        set_random_weights(lm, seed=0, round_to="bfloat16")
        lm.save_to_preset(folder / "model")
    config = lm.backbone.config
    window = config.sliding_window_size
    ids = text_of(model, config.vocabulary_size, window, data)
    truth = Reference(lm).logits(ids)
    np.save(folder / "ids.npy", ids)
    np.save(folder / "truth.npy", truth)
    errors = {}
    for dtype in ("float32", "bfloat16"):
        forward = jax.jit(deepmind.apply(lm.backbone, ids[None], np.ones((1, len(ids))), dtype))
        logits = forward(deepmind.params(lm.backbone))
        errors[dtype] = error(np.asarray(logits[0], "float64"), truth)
    sizes = {"parameters": lm.backbone.count_params(), "tokens": len(ids), "window": window}
    return {**sizes, "errors": errors}


def logits_errors(model, folder):
    """Measures the errors of logits by the files of `write_truth`: a dict by variant."""
    ids, truth = np.load(folder / "ids.npy"), np.load(folder / "truth.npy")
    source = PRESET if model == PRESET else str(folder / "model")
    errors = {}
    for name, options in VARIANTS.items():
        lm = keras_rgemma.RGemmaCausalLM.from_preset(source, **options)
        logits = lm.score(ids[None], scoring_mode="logits")
        errors[name] = error(tiny.numpy(logits)[0].astype("float64"), truth)
        del lm, logits
        gc.collect()
    return errors


def bits_per_byte(lm, stream, num_bytes):
    """Computes the cross-entropy of a held-out stream in bits, for each byte of its text.

    It is that of `train.py`, but computed by `score`, in float32 whatever the model computes in.

    Args:
        lm: `RGemmaCausalLM`.
        stream: int [N], token ids of `<bos> document <eos>`, one after another.
        num_bytes: int, of the documents.
    """
    ids, documents, labels, weights = train.rows(stream)
    total = 0.0
    for start in range(0, len(ids), _ROWS):
        part = slice(start, start + _ROWS)
        losses = lm.score(ids[part], documents[part], "loss", target_ids=labels[part])
        total += float(np.sum(tiny.numpy(losses) * weights[part], dtype="float64"))
    # The rows leave out the tail of the stream; count its bytes as average ones.
    return total / math.log(2) / (num_bytes * ids.size / len(stream))


def calibrated(mode, data):
    """Makes the preset in 4 bits, which training data chooses: with "gptq" or "awq"."""
    lm = keras_rgemma.RGemmaCausalLM.from_preset(PRESET, dtype="float32")
    tokenizer = lm.preprocessor.tokenizer
    # Its documents are in an order without meaning, so the beginning is like the rest.
    stream = np.load(data / "train.npy")[: 4 * _SAMPLES * _SAMPLE_TOKENS]
    configs = {"gptq": keras.quantizers.GPTQConfig, "awq": keras.quantizers.AWQConfig}
    config = configs[mode](
        dataset=[tokenizer.detokenize(stream.astype("int32"))],
        tokenizer=tokenizer,
        num_samples=_SAMPLES,
        sequence_length=_SAMPLE_TOKENS,
    )
    lm.quantize(mode, config=config)
    return lm


def held_out_bits(data, variants):
    """Measures bits per byte of held-out text with the preset.

    Args:
        data: `pathlib.Path`, the folder of prepare.py.
        variants: iterable of str, of `VARIANTS` and `CALIBRATED`.

    Returns:
        dict of a variant to a dict of a source to its bits per byte.
    """
    sizes = json.loads((data / "stats.json").read_text(encoding="utf-8"))["heldout"]
    bits = {}
    for name in variants:
        if name in CALIBRATED:
            lm = calibrated(name, data)
        else:
            lm = keras_rgemma.RGemmaCausalLM.from_preset(PRESET, **VARIANTS[name])
        bits[name] = {
            source: bits_per_byte(
                lm, np.load(data / f"heldout_{source}.npy"), sizes[source]["bytes"]
            )
            for source in SOURCES
        }
    return bits


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("truth", "logits", "bits"))
    parser.add_argument("model", choices=MODELS, nargs="?")
    parser.add_argument("folder", type=pathlib.Path, nargs="?")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of prepare.py")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help="of bits")
    args = parser.parse_args()
    if args.what == "truth":
        found = write_truth(args.model, args.folder, args.data)
    elif args.what == "logits":
        found = logits_errors(args.model, args.folder)
    else:
        found = held_out_bits(args.data, args.variants)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
