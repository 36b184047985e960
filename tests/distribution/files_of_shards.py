"""Loads and saves models on meshes of eight virtual CPU devices, in a process of its own.

`python files_of_shards.py SCENARIO` is like `eight_devices.py`.
"""

import json
import pathlib
import sys
import tempfile

import jax
import keras
import numpy as np
from eight_devices import EVEN, MODES, ROWS, distribute, made, raised, random_values

import keras_rgemma
import tiny

MESHES = ((2, 4),)
SIZES = {**EVEN, "hidden_dim": 32}  # as transformers has it, the width of all heads


class Watched:
    """Notes the shapes of NumPy arrays that a function puts on a device.

    (Zeros that a variable has before are of JAX, and Keras makes small ones on one device.)
    """

    def __init__(self, module, name):
        self.shapes, function = [], getattr(module, name)

        def watching(x, *args, **kwargs):
            if isinstance(x, np.ndarray):
                self.shapes.append(x.shape)
            return function(x, *args, **kwargs)

        setattr(module, name, watching)


def loading():
    """How the embedding comes onto a mesh from each kind of file, and what the host then keeps."""
    results, shape = {}, (SIZES["vocabulary_size"], SIZES["hidden_dim"])
    put = Watched(jax, "device_put")
    converted = Watched(jax.numpy, "asarray")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        distribute()
        one = tiny.causal_lm(**SIZES)
        ids = tiny.arrays(rows=4)["token_ids"]
        expected = one.score(ids)
        one.save_to_preset(folder / "preset")
        one.export_to_transformers(folder / "transformers")
        one.quantize("int8")
        rounded = one.score(ids)
        for mesh in MESHES:
            distribute(mesh)
            for name, kwargs in (
                ("preset", {}),
                ("transformers", {}),
                ("transformers", {"quantize": "int8"}),
                ("preset", {"quantize": "int8"}),
            ):
                put.shapes.clear(), converted.shapes.clear()
                from_preset = keras_rgemma.RGemmaCausalLM.from_preset
                lm = from_preset(str(folder / name), **kwargs)
                whole = shape in (*put.shapes, *converted.shapes)
                error = np.abs(lm.score(ids) - (rounded if kwargs else expected)).max()
                new = folder / f"{name}_{'_'.join(map(str, mesh))}_{len(kwargs)}"
                lm.save_to_preset(new)
                if not kwargs:
                    lm.export_to_transformers(f"{new}_transformers")
                kept = [w.path for w in lm.weights if w.value._npy_value is not None]
                distribute()
                again = from_preset(str(new)).score(ids)
                distribute(mesh)
                results[f"{mesh} {name} {len(kwargs)}"] = {
                    "whole": bool(whole) and not kwargs,
                    "error": float(error),
                    "again": float(np.abs(again - lm.score(ids)).max()),
                    "kept": kept,
                }
    return results


def rows():
    ids, labels = np.random.RandomState(0).randint(4, 400, (2, 3 * ROWS, 9)).astype("int32")
    return {"token_ids": ids, "padding_mask": np.ones_like(ids)}, labels


def fit(lm, **kwargs):
    x, y = rows()
    lm.fit(x, y, batch_size=ROWS, shuffle=False, verbose=0, **kwargs)
    return lm


def differences(one, two):
    variables = zip(
        [*one.weights, *one.optimizer.variables],
        [*two.weights, *two.optimizer.variables],
        strict=True,
    )
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in variables)


def orbax():
    """Differences of training that went on on another mesh from training that was not broken."""
    results, values = {}, random_values("even")
    for mode in MODES[:2]:
        with tempfile.TemporaryDirectory() as folder:
            distribute((2, 4))
            middle = fit(made("even", values, mode))
            whole = made("even", values, mode)
            saved = keras.callbacks.OrbaxCheckpoint(folder, save_freq=3, max_to_keep=1)
            fit(whole, epochs=1, callbacks=[saved])
            fit(whole, initial_epoch=1, epochs=2)
            for mesh in ((4, 2), (1, 8), None):
                distribute(mesh)
                lm = made("even", values, mode)
                lm.load_weights(folder)
                loaded = differences(lm, middle)
                layouts = [str(x.value.sharding) for x in made("even", values, mode).weights]
                same = layouts == [str(x.value.sharding) for x in lm.weights]
                fit(lm, initial_epoch=1, epochs=2)
                results[f"{mode} {mesh}"] = [loaded, differences(lm, whole), same]
            if mode == "full":
                other = tiny.causal_lm(None, **{**EVEN, "lru_dim": 16})
                results["other sizes"] = raised(other.load_weights, folder)
                lm.compile(keras.optimizers.Adam(), weighted_metrics=None)
                results["other optimizer"] = raised(lm.load_weights, folder)
                lm.backbone.enable_lora(2)
                results["lora"] = raised(lm.load_weights, folder)
    return results


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
