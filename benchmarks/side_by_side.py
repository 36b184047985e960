"""Measures two processes that write at once, beside the speed of each alone.

    python benchmarks/side_by_side.py --write side_by_side
    python benchmarks/side_by_side.py --backends torch jax tensorflow

On two cores each of two could have half of the speed; threads that wait for each other can cost far
more than that. Every process writes with `generate` at batch 1, alone and together in turn, for
`--seconds` after all have compiled. `--write NAME` writes results/NAME.json and NAME.md. The last
line is JSON.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import statistics
import tempfile
import time

import keras
import reports
from against_peers import markdown
from targets import SIDE_BY_SIDE

import keras_rgemma
from keras_rgemma.backend import BACKENDS
from keras_rgemma.benchmarks.machine import ceilings, host, in_child, versions
from keras_rgemma.benchmarks.measure import SIZES, tokens

FOLDER = pathlib.Path(__file__).resolve().parent
NEW_TOKENS = 16  # of a call
PATIENCE = 300  # seconds to wait for the other process


def meet(folder, processes):
    """Waits until as many processes have called this with the same folder.

    Raises:
        TimeoutError: another process has not come.
    """
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + PATIENCE
    while len(list(folder.iterdir())) < processes:
        if time.monotonic() > deadline:
            raise TimeoutError("The other process has not begun to write.")
        time.sleep(0.01)


def measure(args):
    """Writes for some seconds with the others; returns the tokens a second as a dict."""
    keras.utils.set_random_seed(0)
    lm = keras_rgemma.RGemmaCausalLM(keras_rgemma.RGemmaBackbone(**SIZES[args.size]))
    prompt = {"token_ids": tokens(lm.backbone.vocabulary_size, 1, NEW_TOKENS)}

    def run():
        lm.generate(prompt, max_new_tokens=NEW_TOKENS, stop_token_ids=None)

    run()
    meet(args.meet, args.processes)
    count, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < args.seconds or not count:
        run()
        count += NEW_TOKENS
    return {"tokens_per_s": count / seconds}


def at_once(backend, processes, args):
    """Runs some processes at once; returns a list of the dict that each found."""
    options = ["--size", args.size, "--seconds", args.seconds, "--processes", processes]
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(processes) as threads,
    ):
        command = (backend, str(FOLDER / "side_by_side.py"), "--meet", folder, *options)
        return [x.result() for x in [threads.submit(in_child, *command) for _ in range(processes)]]


def compare(backend, args):
    """Measures one process and several in turn.

    Returns:
        dict of lists, an element a round: `alone`, the tokens a second of one process alone, and
        `together`, a list of those of each of several; or a dict with an `error`.
    """
    found = {"alone": [], "together": []}
    for _ in range(args.rounds):
        results = at_once(backend, 1, args), at_once(backend, args.processes, args)
        for result in [x for several in results for x in several]:
            if "error" in result:
                return result
        alone, together = ([x["tokens_per_s"] for x in several] for several in results)
        found["alone"] += alone
        found["together"].append(together)
    return found


def cells(result):
    """Makes the cells of a row: the rates, the lowest share of a process, and that of all."""
    pairs = list(zip(result["alone"], result["together"], strict=True))
    share = statistics.median(min(several) / alone for alone, several in pairs)
    total = statistics.median(sum(several) / alone for alone, several in pairs)
    each = [statistics.median(x) for x in zip(*map(sorted, result["together"]), strict=True)]
    return [
        f"{statistics.median(result['alone']):.1f}",
        " and ".join(f"{x:.1f}" for x in each),
        f"{share:.2f}" + (" (below the floor)" if share < SIDE_BY_SIDE else ""),
        f"{total:.2f}",
    ]


def page(report):
    """Writes a report as a page."""
    rows = [["backend", "alone", "each of several", "lowest share", "all together"]]
    for backend, result in report["results"].items():
        error = [result.get("error", "").replace("|", "/"), "", "", ""]
        rows.append([backend, *(error if "error" in result else cells(result))])
    return (
        "# Side by side\n\n"
        f"{report['processes']} processes that write at once on {reports.where(report)}. Tokens a "
        f"second of `generate` at batch 1, {report['size']}, float32, medians of "
        f"{report['rounds']} rounds; shares are of the speed alone in the same round, of which "
        f"each process must keep {SIDE_BY_SIDE:.2f}.\n\n"
        f"```\n{report['command']}  # {report['versions']['commit']}\n```\n\n{markdown(rows)}\n"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=["torch"])
    parser.add_argument("--size", choices=SIZES, default="110m")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15, help="of writing, in each process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", metavar="NAME", help="write results/NAME.json and NAME.md")
    parser.add_argument("--folder", type=pathlib.Path, default=FOLDER, help="of --write")
    parser.add_argument("--meet", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.meet:
        print(json.dumps(measure(args)))
        return
    report = {
        "command": reports.command(),
        "machine": host(),
        "versions": versions(),
        "ceilings": ceilings(),
        **{name: getattr(args, name) for name in ("size", "processes", "seconds", "rounds")},
        "results": {backend: compare(backend, args) for backend in args.backends},
    }
    has_failed = any("error" in result for result in report["results"].values())
    reports.finish(args, report, page(report), has_failed)


if __name__ == "__main__":
    main()
