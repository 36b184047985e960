"""Writes the results of stacked.py as a page."""

import tpu

CYCLES = 1.5e9  # a second, of a v5e
READ = 819e9  # bytes a second, of a v5e's memory

CONCLUSION = """
The loop is not worth doing, neither as the default nor as an option:

- **A prompt** of 2048 tokens compiles no sooner in it: 34 s of all threads beside 35 s. Nor
  does time grow with depth: 14 layers take 32 s, and twelve more 3 s. The TPU's compiler itself
  seems to do equal work once.
- **A token** compiles in 4 s of all threads and not 6 s. No weight is copied: the loop's
  temporaries, 4 MB, are smaller than a matrix of 39 MB. But layer by layer the compiler fetches
  weights into fast memory ahead of their products, in the loop it does not. Where products are
  quick (`two_rows`), the estimate is 6.2 ms layer by layer, no more than reading takes, and 10.2 ms
  in the loop.
- **A training step** with LoRA compiles no sooner either: 99 s of all threads (`split`; 128 s for
  the same program on a fuller machine) beside 97 s. It is reckoned at 331 ms and not 303 ms, with
  0.09 GB more of temporaries.
- **On the CPU** XLA copies each matrix out of the stack. A token takes 1.8 times as long, a prompt
  1.12 and a training step 1.17 times, with 0.4 GB more of temporaries. Tracing and
  compiling take 0.4 s less for a prompt, 0.5 s for tokens, and as long for a training step.
- **In the package** a Keras variable belongs to one layer: LoRA, int8, adapters, files of weights,
  layouts over devices and replaced `transformer_layers` rely on it. JAX has no views of an array.
  The stacks of 2B would be 3.75 GB beside the variables, or would be made in every call: as much
  of temporaries, and 9 ms of reading and writing.

**Functions** for groups change nothing: XLA writes them out at each call. Tracing is a few seconds
shorter. **Less effort of the compiler** is no way either: its levels below the default compile a
prompt in 7 to 9 s, and the estimate is three times that of today. What does help is
`JAX_COMPILATION_CACHE_DIR` (docs/speed.md): a second process compiles nothing.

**Found beside it**: with `xla` the compiler makes a product of one row a sum of products on the
vector unit, and reckons 21.7 ms a token; with `two_rows`, the default since, 6.2 ms.
"""


def of_tpu(results):
    """Makes the table of compiled programs."""
    names = [
        "work",
        "layers",
        "form",
        "products",
        "compiler",
        "traced s",
        "compiled s",
        "of all threads s",
    ]
    names += ["inputs GB", "temporary GB", "moved GB", "TFLOP", "code MB", "estimate ms"]
    rows = []
    for x in results:
        cells = [x["work"], x["layers"], x["form"], x["products"], x["compiler"] or "-"]
        cells += [f"{x[name]:.1f}" for name in ("trace_s", "compile_s", "compile_cpu_s")]
        sizes = ("argument_bytes", "temporary_bytes", "bytes_accessed")
        cells += [f"{x[name] / 1e9:.2f}" for name in sizes]
        cells += [f"{x['flops'] / 1e12:.3g}", f"{x['code_bytes'] / 1e6:.0f}"]
        rows.append([*cells, f"{1e3 * x['estimated_cycles'] / CYCLES:.1f}"])
    return tpu.table(names, rows)


def of_cpu(results):
    """Makes the table of programs that ran."""
    names = ["work", "layers", "form", "traced s", "compiled s", "inputs GB", "temporary GB"]
    names += ["ms", "lowest and highest", "difference"]
    rows = []
    for x in results:
        cells = [
            x["work"],
            x["layers"],
            x["form"],
            *(f"{x[name]:.2f}" for name in ("trace_s", "compile_s")),
        ]
        cells += [f"{x[name] / 1e9:.2f}" for name in ("argument_bytes", "temporary_bytes")]
        cells += [f"{1e3 * x['seconds']:.0f}"]
        cells += [f"{1e3 * x['fastest']:.0f}, {1e3 * x['slowest']:.0f}", f"{x['difference']:.1e}"]
        rows.append(cells)
    return tpu.table(names, rows)


def page(report):
    """Writes a report as a page."""
    on_cpu = [x for x in report["results"] if x["device"] == "cpu"]
    on_tpu = [x for x in report["results"] if x["device"] != "cpu"]
    lines = [
        "# Equal layers compiled once",
        "",
        "`layer by layer` is the program of the package. `functions` calls one compiled function "
        "for each group of layers (recurrent, recurrent, attention). `scan` is a loop over the "
        "groups, with weights and states stacked before the program begins; layers behind the last "
        "whole group follow it. `split` is JAX's option "
        "`_split_transpose`.",
        "",
        "```",
        *report["runs"],
        "```",
    ]
    if on_tpu:
        models = sorted({f"{x['model']} on {x['device']}" for x in on_tpu})
        lines += [
            "",
            "## Compiled for a TPU",
            "",
            f"{', '.join(models)}, bfloat16, by the TPU's own compiler on {report['cpus']} CPUs of "
            f"a machine without one, jax {report['versions']['jax']}, libtpu {report['libtpu']}. "
            "Nothing of it has run on a TPU. `decode` makes one token. Other programs ran beside "
            "the compiler: its seconds are good to a factor of 1.5, the seconds of all its threads "
            "are better. `moved` counts a weight that is fetched into fast memory ahead of its "
            "product twice, and a turn of the scan as often as it runs. `estimate` sums what the "
            "compiler reckons for each operation, at 1.5 GHz: without kernels of Pallas, and "
            "without waiting for memory, of which a v5e reads its inputs of 5.4 GB in 6.6 ms.",
            "",
            *of_tpu(on_tpu),
        ]
    if on_cpu:
        models = ", ".join(sorted({x["model"] for x in on_cpu}))
        lines += [
            "",
            "## On the CPU",
            "",
            f"{models}, float32, on {report['cpus']} CPUs, the forms in turn, medians. "
            "`difference` is the largest of outputs from the first form, as a share of an array's "
            "largest number. `decode loop` makes 32 tokens.",
            "",
            *of_cpu(on_cpu),
        ]
    if any(x["model"] == "rgemma_2b_en" for x in on_tpu):
        lines += ["", "## What follows", "", CONCLUSION.strip()]
    return "\n".join(lines) + "\n"
