"""Runs a model on meshes of eight virtual CPU devices, in a process of its own.

`python eight_devices.py SCENARIO` calls the function of that name, and prints what it returns as
JSON in the last line. JAX counts its devices once, so no test can change their number.
"""

import json
import pathlib
import sys
import tempfile

import jax
import keras
import numpy as np

import keras_rgemma
import tiny
from keras_rgemma.distribution import programs
from keras_rgemma.distribution.collectives import collectives
from keras_rgemma.keras_internals import variables
from keras_rgemma.ops import cross_entropy

# Every dimension is another number. Eight devices divide all of them in "even"; in "uneven" they
# divide neither the heads nor the blocks of the gates, 10 as in the model of 2B.
EVEN = {
    "vocabulary_size": 400,
    "num_layers": 2,
    "block_types": ("recurrent", "attention"),
    "hidden_dim": 20,
    "intermediate_dim": 48,
    "num_query_heads": 8,
    "head_dim": 4,
    "lru_dim": 32,
    "sliding_window_size": 5,
}
SIZES = {"even": EVEN, "uneven": {**EVEN, "num_query_heads": 10, "lru_dim": 80}}
ROWS, LENGTH, STEPS, RANK = 8, 9, 5, 4
CHUNK = 40  # tokens whose logits are computed at a time, fewer than those of a batch
cross_entropy.CHUNK_LOGITS = CHUNK * EVEN["vocabulary_size"]
TRAINED = [
    ("even", (1, 8), False),
    ("even", (2, 4), False),
    ("even", (4, 2), False),
    ("even", (8, 1), False),
    ("uneven", (1, 8), False),
    ("even", (2, 4), True),
]
MODES = ("full", "lora", "qlora")
# Meshes and modes whose programs are compiled for their collectives, of training and generation.
LISTED = [((2, 4), mode) for mode in MODES] + [((1, 8), "full"), ((1, 8), "qlora")]
LISTED += [((8, 1), "full"), ((4, 2), "lora")]
GENERATED = [((2, 4), "full"), ((2, 4), "qlora"), ((1, 8), "full")]


def distribute(shape=None, fully_sharded=False, axes=("batch", "model"), **options):
    """Sets a distribution over a mesh of eight devices, or none."""
    distribution = None
    if shape is not None:
        mesh = keras.distribution.DeviceMesh(shape, axes)
        options["fully_sharded"] = fully_sharded
        layouts = keras_rgemma.RGemmaBackbone.get_layout_map(mesh, **options)
        distribution = keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
    keras.distribution.set_distribution(distribution)


def made(sizes, values, mode="full", preprocessor=None):
    """A model with given weights, in a mode of `MODES`."""
    lm = tiny.causal_lm(preprocessor, **SIZES[sizes])
    for weight, value in zip(lm.weights, values, strict=True):
        weight.assign(value)
    if mode == "qlora":
        lm.quantize("int8")
    return ready(lm, None if mode == "full" else RANK)


def ready(lm, rank=None):
    """Compiles a model for training, with random values of LoRA if it has a rank; returns it."""
    if rank:
        lm.backbone.enable_lora(rank)
        random = np.random.RandomState(5)
        for weight in lm.trainable_weights:
            weight.assign(random.normal(0, 0.1, weight.shape))
    lm.compile(keras.optimizers.SGD(0.1, momentum=0.9), weighted_metrics=None)
    return lm


def random_values(sizes):
    lm = tiny.randomize(tiny.causal_lm(None, **SIZES[sizes]))
    return [np.asarray(weight.value) for weight in lm.weights]


def losses(lm):
    """The losses of steps on rows with pads and packed documents."""
    random, seen = np.random.RandomState(0), []
    ids, labels = random.randint(4, 400, (2, ROWS * STEPS, LENGTH)).astype("int32")
    mask = np.ones(ids.shape, "int32")
    mask[::3, 4:] = 2
    mask[1::3, -2:] = 0

    def listed(batch, logs):
        seen.append(logs["loss"])

    lm.fit(
        {"token_ids": ids, "padding_mask": mask},
        labels,
        sample_weight=(mask > 0).astype("float32"),
        batch_size=ROWS,
        shuffle=False,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=listed)],
    )
    return seen


def nbytes(arrays):
    """The bytes of arrays on each of the devices."""
    counts = dict.fromkeys(jax.devices(), 0)
    for array in arrays:
        for shard in array.addressable_shards:
            counts[shard.device] += shard.data.nbytes
    return list(counts.values())


def moves(lowered):
    """What the devices of a program send each other, as triples of kind, shape and count."""
    counts = {}
    for operation in collectives(lowered.compile().as_text()):
        for array in operation.arrays:
            key = operation.kind, array.shape
            counts[key] = counts.get(key, 0) + 1
    return [(kind, shape, count) for (kind, shape), count in sorted(counts.items())]


def training():
    """Differences from one device after some steps, bytes a device, and the collectives."""
    all_values, ones, results = {name: random_values(name) for name in SIZES}, {}, []
    for sizes, mesh, fully_sharded in TRAINED:
        values = all_values[sizes]
        for mode in MODES:
            distribute()
            if (sizes, mode) not in ones:
                one = made(sizes, values, mode)
                before = [np.asarray(x.value) for x in one.trainable_weights]
                seen = losses(one)
                changes = [
                    np.abs(x - y).min() for x, y in zip(before, one.trainable_weights, strict=True)
                ]
                ones[sizes, mode] = seen, [np.asarray(x.value) for x in one.weights], changes
            distribute(mesh, fully_sharded)
            lm = made(sizes, values, mode)
            seen = losses(lm)
            expected, weights, changes = ones[sizes, mode]
            pairs = zip(lm.weights, weights, strict=True)
            slots = [x.value for x in lm.optimizer.variables if x.path.endswith("momentum")]
            results.append(
                {
                    "case": [sizes, list(mesh), fully_sharded, mode],
                    "losses": float(np.abs(np.subtract(seen, expected)).max()),
                    "weights": max(float(np.abs(x - y).max()) for x, y in pairs),
                    "changes": float(max(changes)),
                    "weight_bytes": nbytes([x.value for x in lm.backbone.weights]),
                    "slot_bytes": nbytes(slots),
                    "moves": {
                        **(training_moves(lm) if (mesh, mode) in LISTED else {}),
                        **(generation_moves(lm) if (mesh, mode) in GENERATED else {}),
                    },
                    "shapes": [list(x.shape) for x in lm.backbone.weights if len(x.shape) > 1],
                }
            )
    return results


def training_moves(lm):
    return {"train": moves(programs.lower_train_step(lm, ROWS, LENGTH))}


def generation_moves(lm):
    return {
        "prefill": moves(programs.lower_prefill(lm, ROWS, LENGTH)),
        "decode": moves(programs.lower_decode(lm, ROWS)),
    }


# The first two write in every way, the others in one.
WRITTEN = [
    ("even", (2, 4)),
    ("uneven", (1, 8)),
    ("even", (1, 8)),
    ("even", (4, 2)),
    ("even", (8, 1)),
]
PROMPTS = ["The quick", "A lighthouse is", "What is a river? A", "Call me", "In the beginning"]


def written(lm, folder, is_short):
    """All that a model writes greedily, from prompts of numbers that no axis divides."""
    if is_short:
        return {"eight": lm.generate([*PROMPTS, *PROMPTS[:3]], max_new_tokens=5)}
    state = lm.prefill("She sells sea shells by", chunk_size=3)
    state.save(folder / "state")
    loaded = keras_rgemma.RGemmaState.load(folder / "state")
    text, after = lm.generate(" the", state=state, max_new_tokens=6, return_state=True)
    chat = lm.chat(max_new_tokens=6)
    answers = [chat.send("What is a river?"), "".join(chat.stream("And?"))]
    chat.save(folder / "chat")
    again = lm.load_chat(folder / "chat", max_new_tokens=6)
    return {
        "one": lm.generate(PROMPTS[0], max_new_tokens=8),
        "several": lm.generate(PROMPTS[:3], max_new_tokens=8, stop=["zz"]),
        "many": lm.generate(PROMPTS, batch_size=2, max_new_tokens=6),
        "stream": "".join(lm.stream(PROMPTS[1], max_new_tokens=8)),
        "state": [text, lm.generate("", state=after, max_new_tokens=4)],
        "loaded": lm.generate([" the", " a"], state=loaded.repeat(2), max_new_tokens=6),
        "chat": [*answers, again.send("Why?")],
        "beam": beam(lm),
    }


def beam(lm):
    lm.compile(sampler="beam")
    text = lm.generate(PROMPTS[:2], max_new_tokens=4)
    lm.compile(sampler="greedy")
    return text


def generation():
    """Text and scores on meshes and on one device, and the bytes of a state."""
    results = []
    for sizes, mesh in WRITTEN:
        is_short = (sizes, mesh) not in WRITTEN[:2]
        distribute()
        one = tiny.wordy(tiny.causal_lm(**SIZES[sizes]))
        values = [np.asarray(weight.value) for weight in one.weights]
        ids = tiny.arrays(rows=4)["token_ids"]
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            texts, scores = written(one, folder, is_short), one.score(ids)
            targets = {"scoring_mode": "loss", "target_ids": np.roll(ids, -1, axis=1)}
            one_loss = 0.0 if is_short else one.score(ids, **targets)
            distribute(mesh)
            lm = made(sizes, values, preprocessor="default")
            new_texts, new_scores = written(lm, folder, is_short), lm.score(ids)
            new_loss = 0.0 if is_short else lm.score(ids, **targets)
            # States go from a mesh to one device, and back; the model remembers its distribution.
            crossed = []
            if not is_short:
                there = lm.prefill(PROMPTS[3])
                distribute()
                here = one.prefill(PROMPTS[3])
                crossed.append(one.generate("", state=there, max_new_tokens=6))
                crossed.append(lm.generate("", state=here, max_new_tokens=6))
        state = lm.prefill({"token_ids": np.full((ROWS, 4), 7, "int32")})
        results.append(
            {
                "case": [sizes, list(mesh)],
                "differ": [name for name in texts if texts[name] != new_texts[name]],
                "texts": texts,
                "crossed": crossed,
                "scores": float(np.abs(scores - new_scores).max()),
                "loss": float(np.abs(one_loss - new_loss).max()),
                "state_bytes": nbytes(jax.tree.leaves(state.consumed)),
            }
        )
    return results


def placement():
    """The layouts of all weights with int4 and LoRA, and of a model that was loaded from a file."""
    distribute((2, 4))
    lm = tiny.causal_lm(None, **EVEN)
    lm.quantize("int4")
    lm.backbone.enable_lora(RANK)
    found = {weight.path: str(weight.value.sharding.spec) for weight in lm.backbone.weights}
    ids = tiny.arrays(rows=4)["token_ids"]
    scores = np.asarray(lm.score(ids))
    with tempfile.TemporaryDirectory() as folder:
        lm.save(f"{folder}/lm.keras")
        loaded = keras.saving.load_model(f"{folder}/lm.keras")
        again = {weight.path: str(weight.value.sharding.spec) for weight in loaded.backbone.weights}
        distribute()
        one = keras.saving.load_model(f"{folder}/lm.keras")
    return {
        "layouts": found,
        "variables": variables_of_keras(),
        "same": again == found,
        "scores": float(np.abs(one.score(ids) - scores).max()),
    }


def variables_of_keras():
    """Where variables lie that keras_internals lays out."""
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
    layout = keras.distribution.TensorLayout((None, "model"), mesh)
    before, now = keras.Variable(np.ones((2, 4))), keras.Variable(np.ones((2, 4)))
    with variables.uninitialized_variables():
        later = keras.Variable("ones", shape=(2, 4))
    variables.set_layout(now, layout)
    variables.set_layout(later, layout)
    waits = not variables.has_value(later)
    variables.initialize(later)
    with keras.distribution.DataParallel().scope():
        variables.replicate_unplaced([before, now])
    now.assign(np.zeros((2, 4)))
    shapes = {
        name: [shard.data.shape for shard in variable.value.addressable_shards]
        for name, variable in (("before", before), ("now", now), ("later", later))
    }
    return {"waits": waits, **shapes}


def raised(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def errors():
    """What each kind of bad input raises."""
    ids = np.full((12, LENGTH), 7, "int32")
    x = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    weight, one = np.ones(ids.shape, "float32"), tiny.causal_lm(None, **EVEN)
    found, mesh = {}, keras.distribution.DeviceMesh
    get = keras_rgemma.RGemmaBackbone.get_layout_map
    found["no mesh"] = raised(get, "model")
    found["no axis"] = raised(get, mesh((1, 8), ("batch", "model")), "tensor")
    found["one axis"] = raised(get, mesh((1, 8), ("batch", "model")), "model", "model")
    absent = [f"cpu:{i}" for i in range(8, 16)]
    found["no devices"] = raised(get, mesh((1, 8), ("batch", "model"), absent))
    found["no kind"] = raised(get, mesh((1, 1), ("batch", "model"), ["tpu:0"]))
    distribute((1, 8))
    for name, sizes in (
        ("intermediate_dim", {"intermediate_dim": 44}),
        ("vocabulary_size", {"vocabulary_size": 402}),
        ("lru_dim", {"lru_dim": 36, "num_query_heads": 4, "head_dim": 8}),
        ("heads", {"num_query_heads": 1, "head_dim": 12}),
    ):
        found[name] = raised(tiny.causal_lm, None, **{**EVEN, **sizes})
    lm = tiny.causal_lm(None, **{**EVEN, "intermediate_dim": 40})
    found["int4"] = raised(lm.quantize, "int4")
    distribute((8, 1), fully_sharded=True)
    found["hidden_dim"] = raised(tiny.causal_lm, None, **EVEN)
    distribute((8, 1))
    lm = tiny.causal_lm(None, **EVEN)
    fit = {"sample_weight": weight[:4], "verbose": 0}
    found["small batch"] = raised(lm.fit, {k: v[:4] for k, v in x.items()}, ids[:4], **fit)
    fit = {"sample_weight": weight, "verbose": 0, "batch_size": 8}
    found["last batch"] = raised(lm.fit, x, ids, **fit)
    found["evaluate"] = raised(lm.evaluate, x, ids, **fit)
    found["predict"] = raised(lm.predict, x, batch_size=4, verbose=0)
    found["set after: fit"] = raised(one.fit, x, ids, **fit)
    found["set after: generate"] = raised(one.prefill, ids)
    distribute((2, 4))
    found["another mesh"] = raised(lm.prefill, ids)
    distribute((8, 1))
    found["the same mesh"] = raised(lm.prefill, ids)
    return found


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
