"""Say whether a task fits a device, before there is one.

    keras-rgemma plan rgemma_2b_en --device v5e-1 --task lora --length 8192
    keras-rgemma plan rgemma_9b_en --device v5e-8 --task qlora --length 4096 --batch 8

Compiles the programs of the task with the device's own compiler and prints the bytes of a chip, the
largest length and batch that fit, what the chips send each other, and the most tokens a second that
the device's published rates allow. It needs no weights and no device, but JAX and a compiler: `pip
install "keras-rgemma[plan-tpu]"` for TPUs, `"keras-rgemma[plan-gpu]"` for GPUs of NVIDIA. A program
takes seconds to minutes; what was compiled is kept, so an interrupted command goes on where it was.
"""

import argparse
import json

from keras_rgemma.choices import PLAN_DTYPES, PLAN_OPTIMIZERS, PLAN_TASKS
from keras_rgemma.distribution.devices import DEVICES
from keras_rgemma.startup import without_startup_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command to a parser."""
    parser.add_argument("preset", metavar="PRESET", help="a name, folder or handle")
    parser.add_argument("--device", required=True, metavar="DEVICE", help=", ".join(DEVICES))
    parser.add_argument("--task", choices=PLAN_TASKS, default="generate", help="(%(default)s)")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row (%(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="rows of all chips (%(default)s)")
    parser.add_argument("--mesh", help="chips along rows and along weights, such as 1x8")
    parser.add_argument(
        "--fully-sharded",
        action="store_true",
        default=None,
        help="divide weights along the rows, too",
    )
    parser.add_argument("--dtype", choices=PLAN_DTYPES, help="(bfloat16; float16 on a T4)")
    parser.add_argument("--quantize", choices=("int4", "int8"), help="(int4 for qlora)")
    parser.add_argument("--rank", type=int, help="of LoRA (8)")
    parser.add_argument("--optimizer", choices=PLAN_OPTIMIZERS, help="(adamw)")
    parser.add_argument(
        "--no-gradient-checkpointing",
        action="store_true",
        help="keep all activations of a training step, and recompute none",
    )
    parser.add_argument(
        "--no-search", action="store_true", help="compile only what was asked for, no larger ones"
    )
    parser.add_argument("--no-cache", action="store_true", help="compile again")
    parser.add_argument("--json", action="store_true", help="print all that is known as JSON")


def run(args: argparse.Namespace) -> None:
    """Compiles, and prints the plan."""
    with without_startup_lines():
        from keras_rgemma.api import plan

    result = plan(
        args.preset,
        args.device,
        args.task,
        length=args.length,
        batch=args.batch,
        mesh=args.mesh,
        fully_sharded=args.fully_sharded,
        dtype=args.dtype,
        quantize=args.quantize,
        rank=args.rank,
        optimizer=args.optimizer,
        gradient_checkpointing=not args.no_gradient_checkpointing,
        search=not args.no_search,
        cache=not args.no_cache,
    )
    print(json.dumps(result.to_dict()) if args.json else result)
