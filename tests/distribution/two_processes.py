"""Runs a model in several processes of JAX, each with a CPU device of its own.

`python two_processes.py SCENARIO ADDRESS COUNT NUMBER FOLDER` is process NUMBER of COUNT. It calls
the function of that name, and prints what it returns as JSON in the last line.
"""

import functools
import json
import os
import pathlib
import signal
import sys
from unittest import mock

import jax
import keras
import numpy as np

import keras_rgemma
import tiny

EPOCHS, ROWS, BREAKS_AT = 4, 4, 5
TEXTS = [*tiny.SENTENCES[:8]]


def distribute(shape, **kwargs):
    mesh = keras.distribution.DeviceMesh(shape, ("batch", "model"))
    layouts = keras_rgemma.RGemmaBackbone.get_layout_map(mesh)
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch", **kwargs)
    )


def made():
    """A model with the same weights in every process."""
    keras.utils.set_random_seed(0)
    lm = tiny.wordy(tiny.causal_lm())
    lm.compile(keras.optimizers.SGD(0.01, momentum=0.9), weighted_metrics=None)
    return lm


def fitted(lm, x, *callbacks, **kwargs):
    """The losses of the batches of `fit`, in the order of the data."""
    seen = []

    def listed(batch, logs):
        seen.append(float(logs["loss"]))

    callbacks = [keras.callbacks.LambdaCallback(on_train_batch_end=listed), *callbacks]
    kwargs = {"batch_size": ROWS, "verbose": 0, "callbacks": callbacks, **kwargs}
    lm.fit(x, **kwargs)
    return seen


def by_generator():
    yield from TEXTS


def learned(lm):
    """Losses of data in each form, and of validation."""
    first = fitted(lm, TEXTS, shuffle=False)
    lazily = fitted(lm, by_generator())
    x, y, weight = lm.preprocessor(TEXTS)
    arrays = fitted(lm, x, y=y, sample_weight=weight, shuffle=False)
    found = lm.evaluate(TEXTS[:4], batch_size=4, verbose=0, return_dict=True)
    return {"texts": first, "generator": lazily, "arrays": arrays, "evaluate": found["loss"]}


def score(lm):
    return float(np.sum(lm.score(tiny.arrays(rows=4)["token_ids"])))


def written(lm):
    """What a model writes, and the sum of its scores."""
    state = lm.prefill("A lighthouse is")
    return {
        "several": lm.generate(["In the", "She sells"], max_new_tokens=5),
        "stream": "".join(lm.stream("Call me", max_new_tokens=5)),
        "state": lm.generate("", state=state, max_new_tokens=5),
    }


def raised(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def together(folder, number):
    """All that two processes do together, on a mesh for rows and on one for weights."""
    results = {}
    for name, shape in (("rows", (2, 1)), ("weights", (1, 2))):
        distribute(shape)
        lm = made()
        results[name] = {"learned": learned(lm), "score": score(lm)}
    lm.save_weights(folder / "lm.weights.h5")
    lm.save_to_preset(folder / "preset")
    lm.export_to_transformers(folder / "transformers")
    lm.load_weights(folder / "lm.weights.h5")
    from_preset = keras_rgemma.RGemmaCausalLM.from_preset
    again = [from_preset(str(folder / name)) for name in ("preset", "transformers")]
    results["again"] = [score(x) for x in (lm, *again)]
    results["rounded"] = score(from_preset(str(folder / "transformers"), quantize="int8"))
    distribute((2, 1))
    lm = made()
    results["written"] = written(lm)
    lm.prefill("A lighthouse is").save(folder / "state.rgstate")
    shuffled = fitted(lm, TEXTS, shuffle=True)
    errors = {
        "predict": raised(lm.predict, TEXTS),
        "split": raised(lm.fit, TEXTS, validation_split=0.5, verbose=0),
        "other data": raised(lm.fit, TEXTS[number : number + 4], batch_size=4, verbose=0),
    }
    errors["rows"] = raised(lm.fit, TEXTS[:3], batch_size=3, verbose=0)
    distribute((2, 1), auto_shard_dataset=False)
    own = made()
    mine = [text for i, text in enumerate(TEXTS) if i % 4 // 2 == number]
    results["own"] = fitted(own, mine, batch_size=ROWS // 2, shuffle=False)
    keras.distribution.set_distribution(None)
    errors["no distribution"] = raised(tiny.causal_lm().fit, TEXTS, verbose=0)
    return {**results, "shuffled": shuffled, "errors": errors}


class Killed(keras.callbacks.Callback):
    """Kills the last of the processes in the middle of an epoch."""

    def __init__(self, number):
        super().__init__()
        self.number, self.count = number, 0

    def on_train_batch_end(self, batch, logs=None):
        self.count += 1
        if self.count == BREAKS_AT and self.number:
            os.kill(os.getpid(), signal.SIGKILL)


def broken(folder, number):
    """Training with checkpoints of each epoch, of which one process is killed."""
    distribute((2, 1))
    saved = keras.callbacks.OrbaxCheckpoint(str(folder / "orbax"), save_on_background=False)
    return fitted(made(), TEXTS, saved, Killed(number), shuffle=False, epochs=EPOCHS)


def resumed(folder, number):
    """Training that goes on from the last checkpoint, on another mesh."""
    distribute((1, 2))
    lm = made()
    lm.load_weights(folder / "orbax")
    done = int(lm.optimizer.iterations) // 2
    losses = fitted(lm, TEXTS, shuffle=False, initial_epoch=done, epochs=EPOCHS)
    lm.save_weights(folder / "resumed.weights.h5")
    return {"done": done, "losses": losses}


if __name__ == "__main__":
    scenario, address, count, number, folder = sys.argv[1:]
    if int(count) > 1:
        # Keras passes no heartbeat on: a process that is gone is missed after 100 seconds.
        with mock.patch(
            "jax.distributed.initialize",
            functools.partial(jax.distributed.initialize, heartbeat_timeout_seconds=10),
        ):
            keras.distribution.initialize(address, int(count), int(number))
    print(json.dumps(globals()[scenario](pathlib.Path(folder), int(number))))
