"""Compiles a model for a TPU, without a TPU: how long that takes, and what the program needs.

    pip install libtpu
    python benchmarks/tpu_compile.py --work decode
    python benchmarks/tpu_compile.py --work prefill decode --write tpu_compile

Of a model without values: "prefill" reads `--tokens` tokens of one row into a state, "decode" makes
the next token of one row, greedily, and "train" computes the loss and the gradients of LoRA of rank
8 on one row of `--tokens` tokens, layers recomputed. Each is compiled with each implementation of
the linear recurrence and of attention that `--recurrence` and `--attention` name, all else as on a
TPU. `--write NAME` writes benchmarks/results/NAME.json and benchmarks/NAME.md.
"""

import argparse
import itertools
import json
import pathlib
import sys

import tpu  # isort: skip, it sets what JAX reads when it is imported

import jax
import jax.numpy as jnp
import keras
from publish import publish
from reports import command

import keras_rgemma
from keras_rgemma.benchmarks.machine import host, versions
from keras_rgemma.checkpoints.loading import build_uninitialized
from keras_rgemma.generation.decode import NO_TOKEN, DecodeState, decode_step
from keras_rgemma.model.samplers import read_sampler, without_softmax
from keras_rgemma.ops.cross_entropy import cross_entropy
from keras_rgemma.state.records import zeros

HERE = pathlib.Path(__file__).resolve().parent
PRESETS = HERE.parent / "presets"


def build(preset, needs_lora, dtype="bfloat16", **sizes):
    """Makes a backbone whose variables have no values, with a preset's sizes or others."""
    config = json.loads((PRESETS / preset / "config.json").read_text())["config"]
    config |= {"dtype": dtype, "gradient_checkpointing": needs_lora, **sizes}

    def make():
        backbone = keras_rgemma.RGemmaBackbone.from_config(config)
        if needs_lora:
            backbone.enable_lora(8)
        return backbone

    return build_uninitialized(make)


def with_variables(backbone, function):
    """Returns a function of the variables' values and of arrays."""

    def run(values, *arrays):
        mapping = zip(backbone.variables, values, strict=True)
        with keras.StatelessScope(state_mapping=list(mapping)):
            return function(*arrays)

    return run


def prefill(backbone, tokens):
    """Returns the program that reads tokens into a state, and its arguments."""

    def run(token_ids, mask, state):
        return backbone.step(token_ids, mask, state)[1]

    return with_variables(backbone, run), (*rows_of(tokens), state_of(backbone))


def decode(backbone, tokens):
    """Returns the program that makes one token of one row from a state, and its arguments."""
    del tokens
    sampler = without_softmax(read_sampler("greedy", backbone.vocabulary_size))

    class Model:  # what a decode step needs of a language model
        step = staticmethod(backbone.step)
        compute_logits = staticmethod(lambda x: backbone.token_embedding(x, reverse=True))

    def run(state):
        stops = jnp.full((1,), NO_TOKEN, "int32")
        return decode_step(Model, sampler, stops, state, all_active=True)

    row = jax.ShapeDtypeStruct((1,), "int32")
    ended = jax.ShapeDtypeStruct((1,), "bool")
    return with_variables(backbone, run), (DecodeState(row, ended, row, state_of(backbone)),)


def train(backbone, tokens):
    """Returns the program of the loss of one row and its gradients for LoRA, and its arguments."""
    is_trained = [any(x is y for y in backbone.trainable_variables) for x in backbone.variables]

    def loss(token_ids, mask):
        hidden = backbone({"token_ids": token_ids, "padding_mask": mask}, training=True)
        head = backbone.token_embedding
        losses, _ = cross_entropy(
            hidden[0, :-1],
            head.embeddings,
            token_ids[0, 1:],
            head.logit_soft_cap,
            needs_embedding_gradient=False,
        )
        return losses.mean()

    def run(values, *arrays):
        def of_trained(trained):
            trained = iter(trained)
            pairs = zip(values, is_trained, strict=True)
            mixed = [next(trained) if is_one else value for value, is_one in pairs]
            return with_variables(backbone, loss)(mixed, *arrays)

        pairs = zip(values, is_trained, strict=True)
        return jax.value_and_grad(of_trained)([value for value, is_one in pairs if is_one])

    return run, rows_of(tokens)


WORK = {"prefill": prefill, "decode": decode, "train": train}


def rows_of(tokens):
    """Returns one row of abstract tokens and its mask."""
    return jax.ShapeDtypeStruct((1, tokens), "int32"), jax.ShapeDtypeStruct((1, tokens), "bool")


def state_of(backbone):
    """Returns the abstract state of one row."""
    return jax.eval_shape(lambda: zeros(backbone.config, 1, backbone.compute_dtype))


def measure(preset, chip, work, recurrence, attention, tokens):
    """Compiles one program; returns a dict of what is known about it."""
    backbone = build(preset, needs_lora=work == "train")
    function, arguments = WORK[work](backbone, tokens)
    values = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in backbone.variables]
    arguments = tpu.abstract((values, *arguments), tpu.sharding_of(chip))
    with (
        tpu.operations_for(chip),
        keras_rgemma.implementation(linear_recurrence=recurrence, window_attention=attention),
    ):
        _, found = tpu.compile_for_tpu(function, *arguments)
    names = {"work": work, "recurrence": recurrence, "attention": attention, "tokens": tokens}
    return names | found


def markdown(report):
    """Writes a report as a page."""
    rows = []
    for x in report["results"]:
        sizes = (x[name] / 1e9 for name in ("argument_bytes", "temporary_bytes"))
        tokens = 1 if x["work"] == "decode" else x["tokens"]
        cells = [x["work"], tokens, x["recurrence"], x["attention"]]
        cells += [f"{x[name]:.0f}" for name in ("trace_s", "compile_s")]
        rows.append([*cells, *(f"{size:.2f}" for size in sizes)])
    names = ["work", "tokens", "recurrence", "attention", "traced s", "compiled s"]
    names += ["inputs GB", "temporary GB"]
    lines = [
        f"# {report['preset']} compiled for a TPU",
        "",
        f"For one {report['chip']} in bfloat16, by the TPU's own compiler on {report['cpus']} CPUs "
        f"of a machine without one, jax {report['versions']['jax']}, libtpu {report['libtpu']}. "
        "Nothing of it has run on a TPU. Inputs are weights, tokens and the state. Other "
        "programs may run beside the compiler, so its seconds are good to a factor of two.",
        "",
        f"```\n{report['command']}\n```",
        "",
        *tpu.table(names, rows),
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    presets = sorted(path.parent.name for path in PRESETS.glob("*/config.json"))
    parser.add_argument("--preset", choices=presets, default="rgemma_2b_en")
    parser.add_argument("--chip", choices=tpu.CHIPS, default="v5e")
    parser.add_argument("--work", choices=WORK, nargs="+", default=["prefill", "decode"])
    parser.add_argument("--recurrence", nargs="+", default=["associative", "pallas"])
    parser.add_argument("--attention", nargs="+", default=["blocks"])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--write", metavar="NAME", help="write results/NAME.json and NAME.md")
    args = parser.parse_args()
    results = []
    for choice in itertools.product(args.work, args.recurrence, args.attention):
        results.append(measure(args.preset, args.chip, *choice, args.tokens))
        print(json.dumps(results[-1]), file=sys.stderr)
    report = {"command": command()}
    report |= {"preset": args.preset, "chip": args.chip, **host(), "versions": versions()}
    report |= {"libtpu": tpu.version(), "results": results}
    publish(HERE, args.write, report, markdown(report))


if __name__ == "__main__":
    main()
