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
import json
import math
import pathlib
import time
from unittest import mock

import tpu  # isort: skip, it sets what JAX reads when it is imported

import jax
import keras
import numpy as np
from jax.experimental import topologies
from reports import command

import keras_rgemma
from keras_rgemma.checkpoints.loading import build_uninitialized
from keras_rgemma.distribution import programs
from keras_rgemma.distribution.collectives import collectives, table
from keras_rgemma.keras_internals.variables import set_layout

HERE = pathlib.Path(__file__).resolve().parent
PRESETS = HERE.parent / "presets"
AXES = ("batch", "model", "sequence")
TOPOLOGIES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 256: "16x16"}
SMALL = {
    "vocabulary_size": 1024,
    "num_layers": 3,
    "hidden_dim": 512,
    "intermediate_dim": 1536,
    "num_query_heads": 8,
    "lru_dim": 512,
}


def distribution_over(chip, shape, sequence, fully_sharded):
    """Makes a distribution over a mesh of chips that are not there."""
    count = math.prod(shape)
    options = {"chips_per_host_bounds": [1, 1, 1]} if count == 1 else {}
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{chip}:{TOPOLOGIES[count]}", **options
    )
    names = [f"tpu:{i}" for i in range(count)]
    mesh = keras.distribution.DeviceMesh(shape, AXES, names)
    chips = np.array(topology.devices).reshape(shape)
    mesh._backend_mesh = jax.sharding.Mesh(chips, AXES)  # Keras would look for them here
    layouts = keras_rgemma.RGemmaBackbone.get_layout_map(
        mesh, fully_sharded=fully_sharded, sequence_parallel_dim_name=sequence
    )
    return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")


def build(preset, full, distribution, sizes):
    """Makes a compiled model in bfloat16 whose variables have no values."""
    config = SMALL
    if preset != "small":
        config = json.loads((PRESETS / preset / "config.json").read_text())["config"]
    config = config | {"dtype": "bfloat16", "gradient_checkpointing": True} | sizes

    def make():
        backbone = keras_rgemma.RGemmaBackbone.from_config(config)
        if not full:
            backbone.enable_lora(8)
        return backbone

    with distribution.scope():
        backbone = build_uninitialized(make)
        for variable in backbone.variables:
            set_layout(variable, distribution.get_variable_layout(variable))
    # Outside, the counters of the optimizer get their values here, and not on a chip.
    lm = keras_rgemma.RGemmaCausalLM(backbone, preprocessor=None)
    lm.compile(keras_rgemma.finetuning.AdamW(1e-4), weighted_metrics=None)
    build_uninitialized(lambda: lm.optimizer.build(lm.trainable_variables))
    return lm


def measure(args):
    """Compiles a step; returns a dict of what is known about it and the text of the program."""
    shape = tuple(args.mesh)
    distribution = distribution_over(args.chip, shape, args.sequence, args.fully_sharded)
    start = time.perf_counter()
    lm = build(args.preset, args.full, distribution, args.sizes)
    with mock.patch("jax.default_backend", lambda: "tpu"), distribution.scope():  # as on a TPU
        lowered = programs.lower_train_step(lm, args.rows, args.tokens)
    traced = time.perf_counter()
    compiled = lowered.compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
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
        "trace_s": traced - start,
        "compile_s": time.perf_counter() - traced,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
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
