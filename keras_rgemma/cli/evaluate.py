"""Measure the rows of the model cards, beside what was published.

    keras-rgemma evaluate rgemma_2b_en --suite model-card --run-unsafe-code
    keras-rgemma evaluate rgemma_instruct_2b_en --suite safety
    keras-rgemma evaluate my_preset --suite piqa,arc_easy --limit 100

Asks the questions of EleutherAI's evaluation harness, which comes with `pip install
"keras-rgemma[eval]"` and fetches its data from a hub. Prints measured beside published with the
difference, the standard error and how it was asked, and writes report.md and report.json. Every
answer is kept at once: the same command after Ctrl-C or a crash goes on where it was. Returns 1 if
a row could not be measured, and names it.
"""

import argparse
import json
import sys

from keras_rgemma.cli.lm_eval import import_with_harness


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command to a parser."""
    parser.add_argument("preset", metavar="PRESET", help="a name, folder or handle")
    parser.add_argument(
        "--suite",
        default="model-card",
        metavar="SUITE",
        help="model-card, safety, or tasks of the harness with commas between (%(default)s)",
    )
    parser.add_argument("--output", metavar="FOLDER", help="(evaluation-PRESET)")
    parser.add_argument("--batch-size", default="8", metavar="N", help="rows at a time (8)")
    parser.add_argument("--dtype", help="of weights and computation, such as bfloat16")
    parser.add_argument("--revision", help="of a preset on a hub")
    parser.add_argument("--quantize", choices=("int4", "int8"))
    parser.add_argument(
        "--library",
        default="keras-rgemma",
        choices=("keras-rgemma", "keras-hub"),
        help="keras-hub for another model, such as gemma_2b_en",
    )
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="(that of each row)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first questions alone")
    parser.add_argument(
        "--chat-template", action="store_true", help="ask in turns of a conversation"
    )
    parser.add_argument("--system", metavar="TEXT", help="a system instruction")
    parser.add_argument(
        "--run-unsafe-code",
        action="store_true",
        help="run programs that the model writes (HumanEval, MBPP): in a container alone",
    )
    parser.add_argument(
        "--column", metavar="NAME", help='published results to compare: "RecurrentGemma 2B"'
    )
    parser.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="FOLDER",
        help="print the results of another evaluation beside these, in one table; any number",
    )
    parser.add_argument("--include-path", metavar="FOLDER", help="with tasks of your own")
    parser.add_argument("--json", action="store_true", help="print all that is known as JSON")


def run(args: argparse.Namespace) -> None:
    """Measures, and prints the table."""
    module, reports = import_with_harness(
        "keras_rgemma.evaluation.evaluate", "keras_rgemma.evaluation.report"
    )
    others = list(map(reports.read_report, args.beside))
    try:
        report = module.evaluate(
            args.preset,
            args.suite,
            args.output,
            batch_size=args.batch_size,
            dtype=args.dtype,
            revision=args.revision,
            quantize=args.quantize,
            library=args.library,
            num_fewshot=args.num_fewshot,
            limit=args.limit,
            apply_chat_template=args.chat_template,
            system_instruction=args.system,
            run_unsafe_code=args.run_unsafe_code,
            column=args.column,
            include_path=args.include_path,
        )
    except KeyboardInterrupt:
        print("The same command goes on from here.", file=sys.stderr)
        raise
    print(json.dumps(report.to_dict()) if args.json else report)
    if others and not args.json:
        print(reports.side_by_side([report, *others]))
    if report.failures:
        names = ", ".join(line.name for line in report.failures)
        raise RuntimeError(f"Not measured: {names}. The reasons are in the table.")
