"""Compares programs that compile each layer with programs that compile equal layers once.

    python benchmarks/stacked.py --work decode train --write stacked
    python benchmarks/stacked.py --work prefill --compiler optimization_level=19 --write stacked
    python benchmarks/stacked.py --device cpu --work "decode loop" --write stacked

The forms are those of stacked_forms.py. For a TPU (`pip install libtpu`) the programs of a preset
are compiled, without values and without a TPU. On the CPU they run with random weights in float32:
the forms in turn, and their outputs must be equal. "train" computes the loss and the gradients of
LoRA of rank 8 on one row, for a TPU with layers recomputed. `--write NAME` writes
benchmarks/results/NAME.json and benchmarks/NAME.md; results of other programs stay in them.
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys
import time

import tpu  # isort: skip, it sets what JAX reads when it is imported

import jax
import keras
import numpy as np
import tpu_compile
from publish import publish
from reports import command
from stacked_forms import FORMS, WORK, by_layers, lay_out, without_form
from stacked_page import page

import keras_rgemma
from keras_rgemma.benchmarks.machine import host, versions
from keras_rgemma.benchmarks.measure import SIZES, tokens

FOLDER = pathlib.Path(__file__).resolve().parent
# Of the largest number of an array: forms add float32 numbers in another order.
TOLERANCE = 1e-3
NAMES = ("device", "model", "layers", "work", "form", "products", "compiler", "tokens")


def sizes_of(args):
    """Returns the sizes that replace those of the model, a dict."""
    return {"num_layers": args.layers} if args.layers else {}


def compile_form(args, work, form, **sizes):
    """Compiles one form of a preset's program for a TPU; returns what is known about it."""
    backbone = tpu_compile.build(args.preset, work == "train", **sizes)
    program, arguments = WORK[work](backbone, form, args.tokens)
    values = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in backbone.variables]
    arguments = jax.eval_shape(functools.partial(lay_out, backbone, form), values, arguments)
    arguments = tpu.abstract(arguments, tpu.sharding_of(args.device))
    options = dict(args.compiler)
    with (
        tpu.operations_for(args.device),
        keras_rgemma.implementation(matmul=args.products),
    ):
        compiled, found = tpu.compile_for_tpu(program, *arguments, compiler_options=options)
    found["estimated_cycles"] = tpu.estimated_cycles(compiled.as_text())
    return found, by_layers(backbone, backbone.transformer_layers)


def for_tpu(args, work):
    """Compiles a program in each form for a TPU; returns a list of dicts."""
    results, outside = [], None
    for form in args.forms:
        found, layers = compile_form(args, work, form, **sizes_of(args))
        if FORMS[form].is_stacked:
            # A loop counts once: the rest of the program alone tells what a turn takes.
            sizes = {"num_layers": len(layers.rest)}
            outside = outside or compile_form(args, work, "layer by layer", **sizes)
            for name in ("flops", "bytes_accessed"):
                turn = found[name] - outside[0][name]
                found[name] = outside[0][name] + len(layers.groups) * turn
        count = sum(map(len, layers.groups)) + len(layers.rest)
        results.append({"form": form, "layers": count, **found})
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    return results


def with_values(args, work):
    """Makes a backbone with random weights, those of LoRA among them."""
    keras.utils.set_random_seed(0)
    sizes = {**SIZES[args.size], **sizes_of(args)}
    backbone = keras_rgemma.RGemmaBackbone(**sizes, dtype="float32")
    if work == "train":
        backbone.enable_lora(8)
        for variable in backbone.trainable_variables:
            variable.assign(0.01 * keras.random.normal(variable.shape))
    return backbone


def random_arguments(backbone, arguments):
    """Gives values to the abstract arguments of a program: a row of random tokens, or zeros."""

    def value(x):
        if x.dtype == bool and len(x.shape) == 2:  # a mask
            return np.ones(x.shape, bool)
        if x.dtype == "int32" and len(x.shape) == 2:
            return tokens(backbone.vocabulary_size, *x.shape).astype("int32")
        return np.zeros(x.shape, x.dtype)

    return jax.tree.map(value, arguments)


def difference(one, other):
    """Returns the largest difference of two trees, as a share of each array's largest number."""

    def of_arrays(x, y):
        x, y = (np.asarray(array, "float64") for array in (x, y))
        return np.abs(x - y).max() / max(np.abs(x).max(), 1e-30)

    return max(map(of_arrays, jax.tree.leaves(one), jax.tree.leaves(other)), default=0.0)


def on_cpu(args, work):
    """Runs a program in each form on the CPU, in turn; returns a list of dicts."""
    backbone = with_values(args, work)
    programs, found = {}, {form: [] for form in args.forms}
    for form in args.forms:
        program, arguments = WORK[work](backbone, form, args.tokens)
        arguments = random_arguments(backbone, arguments)
        if work == "decode loop":
            (state,) = arguments
            arguments = (state._replace(budgets=np.full_like(state.budgets, 2**30)),)
        values = [x.value for x in backbone.variables]
        programs[form] = program, lay_out(backbone, form, values, arguments)
    compiled, outputs = {}, {}
    for _ in range(args.rounds):
        for form, (program, arguments) in programs.items():
            jax.clear_caches()
            compiled[form], facts = tpu.compile_for("cpu", program, *arguments)
            found[form].append(facts)
    for form, (_, arguments) in programs.items():
        outputs[form] = without_form(compiled[form](*arguments), form)
    seconds = {form: [] for form in args.forms}
    for _ in range(args.repeats):
        for form, (_, arguments) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(compiled[form](*arguments))
            seconds[form].append(time.perf_counter() - start)
    results = []
    for form, facts in found.items():
        apart = difference(outputs[args.forms[0]], outputs[form])
        assert apart <= TOLERANCE, (work, form, apart)
        medians = {x: statistics.median(one[x] for one in facts) for x in facts[0]}
        results.append(
            {
                "form": form,
                "layers": backbone.config.num_layers,
                **medians,
                "seconds": statistics.median(seconds[form]),
                "fastest": min(seconds[form]),
                "slowest": max(seconds[form]),
                "difference": apart,
            }
        )
    return results


def joined(report, path):
    """Adds the results of other programs that a file holds to a report."""
    if not path.exists():
        return report
    earlier = json.loads(path.read_text(encoding="utf-8"))
    programs = [[x[name] for name in NAMES] for x in report["results"]]
    others = [x for x in earlier["results"] if [x[name] for name in NAMES] not in programs]
    return {
        **earlier,
        **report,
        "runs": [*(x for x in earlier["runs"] if x not in report["runs"]), *report["runs"]],
        "results": [*others, *report["results"]],
    }


def option(text):
    """Reads NAME=NUMBER."""
    name, _, number = text.partition("=")
    return name, float(number) if "." in number else int(number)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=(*tpu.CHIPS, "cpu"), default="v5e")
    parser.add_argument("--preset", default="rgemma_2b_en", help="for a TPU")
    parser.add_argument("--size", choices=SIZES, default="110m", help="on the CPU")
    parser.add_argument("--layers", type=int, help="instead of those of the model")
    parser.add_argument("--work", choices=WORK, nargs="+", default=["prefill", "decode", "train"])
    parser.add_argument("--forms", choices=FORMS, nargs="+", default=["layer by layer", "scan"])
    parser.add_argument("--products", default="xla", help="the implementation, for a TPU")
    parser.add_argument(
        "--compiler", type=option, nargs="+", default=[], metavar="NAME=NUMBER", help="its options"
    )
    parser.add_argument("--tokens", type=int, default=2048, help="of a prompt or a training step")
    parser.add_argument("--rounds", type=int, default=2, help="of compiling, on the CPU")
    parser.add_argument("--repeats", type=int, default=5, help="calls that are timed, on the CPU")
    parser.add_argument("--write", metavar="NAME", help="write results/NAME.json and NAME.md")
    args = parser.parse_args()
    is_cpu = args.device == "cpu"
    common = {"device": args.device, "model": args.size if is_cpu else args.preset}
    common |= {"products": "float32" if is_cpu else args.products, "tokens": args.tokens}
    common["compiler"] = " ".join(f"{name}={number}" for name, number in args.compiler)
    found = [(work, (on_cpu if is_cpu else for_tpu)(args, work)) for work in args.work]
    results = [{**common, "work": work, **x} for work, several in found for x in several]
    report = {"runs": [command()], **host(), "versions": versions(), "results": results}
    if not is_cpu:
        report["libtpu"] = tpu.version()
    if args.write:
        report = joined(report, FOLDER / "results" / f"{args.write}.json")
    publish(FOLDER, args.write, report, page(report))


if __name__ == "__main__":
    main()
