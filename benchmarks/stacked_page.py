"""Writes the results of stacked.py as a page."""

import tpu

CYCLES = 1.5e9  # a second, of a v5e
READ = 819e9  # bytes a second, of a v5e's memory

CONCLUSION = """TODO"""


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
        "whole group follow it. `two a turn` unrolls two groups, `split` is JAX's option "
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
