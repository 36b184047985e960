"""Trains the embedded preset `rgemma_tiny_en`, or a KerasHub Gemma of its size to compare with.

    python examples/train_rgemma_tiny/prepare.py --out build/rgemma_tiny_en
    python examples/train_rgemma_tiny/train.py --data build/rgemma_tiny_en
    python examples/train_rgemma_tiny/train.py --data build/rgemma_tiny_en --model gemma
    python examples/train_rgemma_tiny/train.py --data build/rgemma_tiny_en --out build/preset \\
        --start build/rgemma_tiny_en/rgemma.weights.h5 --streams train common common \\
        --steps 5000 --seed 1
    python examples/train_rgemma_tiny/train.py --data build/rgemma_tiny_en --out build/wider \\
        --start build/preset --intermediate_dim 1024 --streams train talk talk talk talk talk \\
        --steps 1800 --seed 2 --learning_rate 3e-3 --name wider
    python examples/train_rgemma_tiny/train.py --data build/rgemma_tiny_en --out build/last \\
        --start build/wider --intermediate_dim 1024 --streams train common talk \\
        --steps 800 --seed 3 --learning_rate 2e-3 --name last

The first two see the same tokens; the third goes on from the first, with more of what people ask
for, and makes the preset. The fourth widens the MLPs and asks for common words in many phrasings;
the fifth reads all of the data again. presets/rgemma_tiny_en/README.md says how well each does. A
run that was killed goes on with the same result when its command is given again. Prints the
held-out bits per byte of both sources as JSON at the end. The third takes 100 minutes of one core;
KERAS_BACKEND=tensorflow is the quickest backend for it on CPUs. A new preset needs a new
tests/model/expected_text.txt.
"""

import argparse
import json
import math
import operator
import pathlib
import time

import keras
import keras_hub
import numpy as np
from keras import ops

import keras_rgemma

ROW = 512
END = 1  # <eos>, the last token of a document
ARCHITECTURE = {
    "vocabulary_size": 4096,
    "num_layers": 6,
    "hidden_dim": 192,
    "intermediate_dim": 512,
    "num_query_heads": 4,
    "lru_dim": 256,
    "sliding_window_size": 128,
}
DESCRIPTION = (
    "{} million parameters, trained from scratch on WordNet's glosses as questions and answers "
    "in the instruction format and on the King James Bible. For tests, examples and first steps."
)


def rows(stream):
    """Packed rows of a token stream: ids, document numbers, labels and their weights."""
    count = (len(stream) - 1) // ROW
    ids = stream[: count * ROW].astype("int32").reshape(count, ROW)
    labels = stream[1 : count * ROW + 1].astype("int32").reshape(count, ROW)
    ends = ids == END
    documents = 1 + np.cumsum(np.pad(ends, ((0, 0), (1, 0)))[:, :-1], axis=1)
    # What follows the end of a document is another document, which nothing predicts.
    return ids, documents.astype("int32"), labels, (~ends).astype("float32")


def build(name, **sizes):
    """The model that is trained, by name; `sizes` replace those of the architecture."""
    if name == "rgemma":
        backbone = keras_rgemma.RGemmaBackbone(**{**ARCHITECTURE, **sizes})
        return keras_rgemma.RGemmaCausalLM(backbone)
    # As many parameters, with global attention in every layer.
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=ARCHITECTURE["vocabulary_size"],
        num_layers=ARCHITECTURE["num_layers"],
        num_query_heads=4,
        num_key_value_heads=1,
        hidden_dim=192,
        intermediate_dim=2 * 614,
        head_dim=48,
    )
    return keras_hub.models.GemmaCausalLM(backbone)


def model_inputs(name, ids, documents):
    """Gemma knows no packed documents: its rows are one text each."""
    mask = documents if name == "rgemma" else np.ones_like(documents)
    return {"token_ids": ids, "padding_mask": mask}


def configure(model, steps, learning_rate):
    """Muon with warmup and cosine decay: it needs fewer tokens than AdamW, which takes the rest.

    The rest is what is no matrix: embeddings, biases, scales, kernels with an axis for heads.
    """
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=learning_rate / 100,
        warmup_target=learning_rate,
        warmup_steps=steps // 20,
        decay_steps=steps - steps // 20,
        alpha=0.02,
    )
    optimizer = keras.optimizers.Muon(
        schedule,
        weight_decay=0.1,
        adam_weight_decay=0.0,
        adam_beta_2=0.98,
        exclude_layers=["conv_1d"],
        global_clipnorm=1.0,
    )
    # No metrics: an argmax over the vocabulary is a tenth of a step.
    model.compile(optimizer=optimizer, weighted_metrics=[])


def bits_per_byte(model, name, stream, num_bytes):
    """Cross-entropy of a held-out stream in bits, divided by the bytes of its text."""
    ids, documents, labels, weights = rows(stream)
    total = 0.0
    for start in range(0, len(ids), 8):
        part = slice(start, start + 8)
        logits = model.predict_on_batch(model_inputs(name, ids[part], documents[part]))
        losses = keras.losses.sparse_categorical_crossentropy(
            labels[part], ops.convert_to_tensor(logits), from_logits=True
        )
        total += float(np.sum(ops.convert_to_numpy(losses) * weights[part]))
    # The rows leave out the tail of the stream; count its bytes as average ones.
    return total / math.log(2) / (num_bytes * ids.size / len(stream))


def fill(model, start):
    """Fills a model from a file of its weights, or from a preset, whose MLPs may be narrower.

    The wider model computes the same at first: its new channels have random kernels, and what they
    put out counts nothing until it is learned.
    """
    if not start.is_dir():
        model.load_weights(str(start))
        return
    smaller = keras_rgemma.RGemmaBackbone.from_preset(str(start), dtype="float32")
    for target, source in zip(model.backbone.weights, smaller.weights, strict=True):
        value = ops.convert_to_numpy(target).copy()
        if "ffw_down" in target.path:
            value[:] = 0
        value[tuple(slice(n) for n in source.shape)] = ops.convert_to_numpy(source)
        target.assign(value)


class Checkpoint:
    """The weights, the optimizer's variables and the number of steps, in one file.

    A run that is killed at any moment goes on from the file with the same result: what a step reads
    depends on its number alone, and a file is replaced only by one that is complete.
    """

    def __init__(self, model, path):
        self.path = path
        model.optimizer.build(model.trainable_variables)  # makes the variables that are kept
        self.variables = [*model.weights, *model.optimizer.variables]

    def save(self, step):
        arrays = {str(i): ops.convert_to_numpy(v) for i, v in enumerate(self.variables)}
        partial = self.path.with_suffix(".partial.npz")
        np.savez(partial, step=step, **arrays)
        partial.replace(self.path)

    def restore(self):
        """Returns the steps that were made: 0 without a file."""
        if not self.path.exists():
            return 0
        with np.load(self.path) as arrays:
            for i, variable in enumerate(self.variables):
                variable.assign(arrays[str(i)])
            return int(arrays["step"])


def run(model, data, batch_size, steps, checkpoint, every):
    """Trains to the last step, from the checkpoint on if there is one."""
    first, losses, start = checkpoint.restore(), [], time.time()
    if first:
        print(f"goes on after step {first}", flush=True)
    for step in range(first, steps):
        part = slice(step * batch_size, (step + 1) * batch_size)
        inputs, labels, weights = keras.tree.map_structure(operator.itemgetter(part), data)
        losses.append(float(model.train_on_batch(inputs, labels, sample_weight=weights)))
        model.reset_metrics()
        if (step + 1) % 25 == 0 or step + 1 == steps:
            speed = (step + 1 - first) * batch_size * ROW / (time.time() - start)
            mean = sum(losses) / len(losses)
            print(f"step {step + 1} loss {mean:.4f}, {speed:.0f} tokens/s", flush=True)
            losses = []
        if (step + 1) % every == 0 or step + 1 == steps:
            checkpoint.save(step + 1)


def save_preset(model, data, out):
    """Writes the preset folder, weights in float16, with the metadata that the registry reads."""
    tokenizer = keras_rgemma.RGemmaTokenizer(proto=str(data / "tokenizer.model"))
    preprocessor = keras_rgemma.RGemmaCausalLMPreprocessor(tokenizer, sequence_length=512)
    config = {**model.backbone.get_config(), "dtype": "float16", "name": "rgemma_backbone"}
    half = keras_rgemma.RGemmaBackbone.from_config(config)
    for target, source in zip(half.weights, model.backbone.weights, strict=True):
        target.assign(ops.cast(source, "float16"))
    keras_rgemma.RGemmaCausalLM(half, preprocessor, name="rgemma_causal_lm").save_to_preset(out)
    path = out / "metadata.json"
    metadata = json.loads(path.read_text())
    millions = f"{half.count_params() / 1e6:.1f}"
    metadata.update(description=DESCRIPTION.format(millions), weights="embedded")
    path.write_text(json.dumps(metadata, indent=4) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of prepare.py")
    parser.add_argument("--out", type=pathlib.Path, help="folder of the preset (rgemma only)")
    parser.add_argument("--start", type=pathlib.Path, help="weights or preset to go on from")
    parser.add_argument("--intermediate_dim", type=int, help="width of the MLPs (rgemma only)")
    parser.add_argument("--streams", nargs="+", default=["train"], help="of train, common and talk")
    parser.add_argument("--model", choices=["rgemma", "gemma"], default="rgemma")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="of the checkpoint and the weights in the data's folder")
    parser.add_argument("--checkpoint_every", type=int, default=200, help="steps")
    args = parser.parse_args()

    keras.utils.set_random_seed(args.seed)
    streams = [rows(np.load(args.data / f"{stream}.npy")) for stream in args.streams]
    ids, documents, labels, weights = (np.concatenate(x) for x in zip(*streams, strict=True))
    order = np.random.RandomState(args.seed)
    needed = args.steps * args.batch_size
    epochs = -(-needed // len(ids))
    chosen = np.concatenate([order.permutation(len(ids)) for _ in range(epochs)])[:needed]

    sizes = {"intermediate_dim": args.intermediate_dim} if args.intermediate_dim else {}
    model = build(args.model, **sizes)
    if args.start:
        fill(model, args.start)
    configure(model, args.steps, args.learning_rate)
    print(f"{args.model}: {model.count_params():,} parameters, {needed * ROW:,} tokens", flush=True)
    name = args.name or f"{args.model}{'_more' if args.start else ''}"
    checkpoint = Checkpoint(model, args.data / f"{name}.checkpoint.npz")
    inputs = model_inputs(args.model, ids[chosen], documents[chosen])
    data = (inputs, labels[chosen], weights[chosen])
    run(model, data, args.batch_size, args.steps, checkpoint, args.checkpoint_every)
    model.save_weights(str(args.data / f"{name}.weights.h5"))
    if args.model == "rgemma" and args.out:
        save_preset(model, args.data, args.out)
    stats = json.loads((args.data / "stats.json").read_text())
    result = {"model": args.model, "parameters": model.count_params(), "tokens": needed * ROW}
    for source in ("wordnet", "bible"):
        stream = np.load(args.data / f"heldout_{source}.npy")
        size = stats["heldout"][source]["bytes"]
        result[f"{source}_bits_per_byte"] = round(bits_per_byte(model, args.model, stream, size), 4)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
