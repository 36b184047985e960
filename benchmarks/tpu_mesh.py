"""Compiles training steps for several TPU chips with their own compiler, without a TPU.

    pip install libtpu
    python benchmarks/tpu_mesh.py --tokens 65536 --mesh 1 1 8 --sequence sequence
    python benchmarks/tpu_mesh.py --preset rgemma_9b_en --tokens 32768 --mesh 1 8 1 --sequence model

Of a model without values: a step of AdamW on `--rows` rows of `--tokens` tokens, on LoRA of rank 8
or, with `--full`, on all weights, layers recomputed. `--mesh` has the chips along the axes "batch",
"model" and "sequence", and `--sequence` names the axis that divides rows over time. Prints JSON of
the bytes a chip and of what the chips send in a step. `--write NAME` adds it to results/NAME.json.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import time

import tpu  # isort: skip, it sets what JAX reads when it is imported

from reports import command

from keras_rgemma.config import RGemmaConfig
from keras_rgemma.distribution import abstract, programs, topologies
from keras_rgemma.distribution.collectives import collectives, table
from keras_rgemma.distribution.compiled import compile_measured
from keras_rgemma.finetuning import AdamW

HERE = pathlib.Path(__file__).resolve().parent
PRESETS = HERE.parent / "presets"
AXES = (*abstract.AXES, "sequence")
COSTS = ("compile_s", "argument_bytes", "temporary_bytes", "code_bytes")
SMALL = {
    "vocabulary_size": 1024,
    "num_layers": 3,
    "hidden_dim": 512,
    "intermediate_dim": 1536,
    "num_query_heads": 8,
    "lru_dim": 512,
}


def config_of(preset):
    """Reads the fields of `RGemmaConfig` of a preset, a dict."""
    if preset == "small":
        return SMALL
    found = json.loads((PRESETS / preset / "config.json").read_text())["config"]
    names = {field.name for field in dataclasses.fields(RGemmaConfig)}
    return {name: value for name, value in found.items() if name in names}


def measure(args):
    """Compiles a step; returns a dict of what is known about it and the text of the program."""
    device = f"{args.chip}-{math.prod(args.mesh)}"
    options = {"fully_sharded": args.fully_sharded, "sequence_parallel_dim_name": args.sequence}
    start = time.perf_counter()
    with topologies.operations_for(device):
        lm = abstract.abstract_model(
            config_of(args.preset),
            "bfloat16",
            abstract.distribution_over(topologies.chips_of(device), args.mesh, AXES, **options),
            rank=None if args.full else 8,
            optimizer=AdamW(1e-4),
            gradient_checkpointing=True,
            **args.sizes,
        )
        made = time.perf_counter() - start
        compiled, costs = compile_measured(
            lambda: programs.lower_train_step(lm, args.rows, args.tokens)
        )
    text = compiled.as_text()
    moved = collectives(text)
    return {
        "preset": args.preset,
        "layers": lm.backbone.config.num_layers,
        "work": "train" if args.full else "lora",
        "chip": args.chip,
        "mesh": dict(zip(AXES, args.mesh, strict=True)),
        "sequence": args.sequence,
        "fully_sharded": args.fully_sharded,
        "rows": args.rows,
        "tokens": args.tokens,
        "trace_s": made + costs["trace_s"],
        **{name: costs[name] for name in COSTS},
        "sent": table(moved).splitlines(),
        "moved": sorted({(x.kind, y.shape) for x in moved for y in x.arrays}),
        "command": command(),
        "libtpu": tpu.version(),
    }, text


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    presets = sorted(path.parent.name for path in PRESETS.glob("*/config.json"))
    parser.add_argument("--preset", choices=["small", *presets], default="small")
    parser.add_argument(
        "--sizes", type=json.loads, default={}, help="JSON of sizes instead of the preset's"
    )
    parser.add_argument("--chip", choices=tpu.CHIPS, default="v5e")
    parser.add_argument("--mesh", type=int, nargs=3, default=[1, 1, 8])
    parser.add_argument("--sequence", choices=AXES[1:])
    parser.add_argument("--fully-sharded", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--write", metavar="NAME", help="add the result to results/NAME.json")
    parser.add_argument("--text", metavar="FILE", help="write the compiled program")
    args = parser.parse_args()
    found, text = measure(args)
    print(json.dumps(found))
    if args.text:
        pathlib.Path(args.text).write_text(text)
    if args.write:
        path = HERE / "results" / f"{args.write}.json"
        before = json.loads(path.read_text()) if path.exists() else []
        path.write_text(json.dumps([*before, found], indent=1) + "\n")


if __name__ == "__main__":
    main()
