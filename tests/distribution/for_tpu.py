"""Compiles small programs of each kind for TPUs, in a process of its own that has their compiler.

Prints what `worker.run` returns for each job of `JOBS`, as JSON in the last line.
"""

import json
import sys

# Eight chips divide every dimension; each is another number.
SIZES = {
    "vocabulary_size": 400,
    "num_layers": 2,
    "block_types": ["recurrent", "attention"],
    "hidden_dim": 40,
    "intermediate_dim": 48,
    "num_query_heads": 8,
    "head_dim": 4,
    "lru_dim": 64,
    "sliding_window_size": 16,
}
ROWS, TOKENS, RANK = 8, 32, 4
TASKS = {
    "prefill": {},
    "decode": {},
    "lora": {"rank": RANK},
    "qlora": {"rank": RANK, "quantize": "int4"},
    "train": {},
}
PLACES = [("v5e-1", (1, 1), False), ("v5e-8", (1, 8), False), ("v5e-8", (4, 2), True)]


def jobs():
    """The jobs, by task, device, mesh and whether weights are fully sharded."""
    for device, mesh, fully_sharded in PLACES:
        for task, changes in TASKS.items():
            if fully_sharded and task != "train":
                continue
            trains = task not in ("prefill", "decode")
            yield (
                [task, device, list(mesh), fully_sharded],
                {
                    "config": SIZES,
                    "device": device,
                    "mesh": mesh,
                    "fully_sharded": fully_sharded,
                    "dtype": "bfloat16",
                    "quantize": None,
                    "rank": None,
                    "optimizer": "sgd" if trains else None,
                    "gradient_checkpointing": trains,
                    "program": "train" if trains else task,
                    "rows": ROWS,
                    "tokens": TOKENS,
                    **changes,
                },
            )


if __name__ == "__main__":
    from keras_rgemma.distribution import worker

    found = []
    for case, job in jobs():
        found.append({"case": case, **worker.run(job)})
        print(case, found[-1].get("compile_s"), file=sys.stderr)
    print(json.dumps(found))
