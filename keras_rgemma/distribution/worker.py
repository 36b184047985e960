"""Compiles one program of a plan in a process of its own: `python -m` this module.

Reads a job as JSON from standard input, and writes what is known about the program as JSON in the
last line of standard output. The environment is that of `devices.ENVIRONMENT`.
"""

import json
import resource
import sys
from collections.abc import Mapping
from typing import Any

import jax
import keras

from keras_rgemma.distribution import programs
from keras_rgemma.distribution.abstract import abstract_model, distribution_over
from keras_rgemma.distribution.collectives import collectives, counted
from keras_rgemma.distribution.compiled import bytes_a_device, compile_measured, needed_bytes
from keras_rgemma.distribution.devices import device_named
from keras_rgemma.distribution.topologies import chips_of, operations_for, sharding_of
from keras_rgemma.generation.jax import compiler_options
from keras_rgemma.model.causal_lm import RGemmaCausalLM
from keras_rgemma.training.optimizer import AdamW


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Compiles a program.

    Args:
        job: dict of the fields of `settings.Settings`, with `program` ("prefill", "decode" or
            "train"), and `rows` and `tokens` of a row in that program.

    Returns:
        dict: bytes of a chip, costs, and collectives; see `report.Program`. Of a program that the
        compiler refuses for its size: `fits` False and `needed_bytes`.
    """
    with operations_for(job["device"]):
        is_one = device_named(job["device"]).chips == 1
        sharding = sharding_of(job["device"]) if is_one else None
        lm = _model(job, is_one)
        facts = _sizes(lm, job["rows"])
        options = None if job["program"] == "train" else compiler_options(lm)
        try:
            compiled, found = compile_measured(lambda: _lowered(lm, job, sharding), options)
        except Exception as error:
            needed = needed_bytes(error)
            if needed is None:
                raise
            facts |= {"fits": False, "needed_bytes": needed}
        else:
            facts |= {"fits": True, **found, "collectives": _joined(compiled.as_text())}
    # Linux counts in units of 1024 bytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return facts | {"host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def _model(job: Mapping[str, Any], is_one: bool) -> RGemmaCausalLM:
    distribution = None
    if not is_one:
        chips, mesh = chips_of(job["device"]), tuple(job["mesh"])
        distribution = distribution_over(chips, mesh, fully_sharded=job["fully_sharded"])
    optimizer = job["optimizer"]
    if optimizer:
        optimizer = AdamW() if optimizer == "adamw" else keras.optimizers.get(optimizer)
    return abstract_model(
        job["config"],
        job["dtype"],
        distribution,
        quantize=job["quantize"],
        rank=job["rank"],
        optimizer=optimizer,
        gradient_checkpointing=job["gradient_checkpointing"],
    )


def _lowered(
    lm: RGemmaCausalLM, job: Mapping[str, Any], sharding: jax.sharding.Sharding | None
) -> jax.stages.Lowered:
    rows, tokens = job["rows"], job["tokens"]
    if job["program"] == "prefill":
        return programs.lower_prefill(lm, rows, tokens, sharding)
    if job["program"] == "decode":
        return programs.lower_decode(lm, rows, sharding)
    return programs.lower_train_step(lm, rows, tokens, sharding)


def _sizes(lm: RGemmaCausalLM, rows: int) -> dict[str, int]:
    with lm.distribution_scope():
        slots = lm.optimizer.variables if lm.optimizer and lm.optimizer.built else []
        return {
            "weight_bytes": bytes_a_device(programs.abstract_values(lm.variables)),
            "optimizer_bytes": bytes_a_device(programs.abstract_values(slots)),
            "state_bytes": bytes_a_device(programs.abstract_state(lm, rows)),
        }


def _joined(text: str) -> list[dict[str, Any]]:
    """Lists equal collectives once, with their count."""
    found = [
        {
            "kind": x.kind,
            "arrays": x.shapes,
            "devices": x.devices,
            "nbytes": x.nbytes,
            "count": count,
        }
        for x, count in counted(collectives(text)).items()
    ]
    return sorted(found, key=lambda x: -x["count"] * x["nbytes"])


def main() -> None:
    try:
        result = run(json.load(sys.stdin))
    except (ValueError, TypeError, NotImplementedError) as error:
        result = {"error": str(error), "kind": type(error).__name__}
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
