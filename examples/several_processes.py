"""Trains a preset in several processes on JAX, from the last checkpoint if there is one.

    python examples/several_processes.py                        # on each host of a TPU slice
    python examples/several_processes.py --address 127.0.0.1:1234 --processes 2 --process 0
    python examples/several_processes.py --address 127.0.0.1:1234 --processes 2 --process 1

With `--processes 1` it runs alone. It prints the loss on questions that were held out, before and
after, and writes a preset. The folder of checkpoints must be one that all processes see.
"""

import pathlib

import keras
import python_questions

import keras_rgemma
from keras_rgemma.finetuning import AdamW


def main():
    parser = python_questions.parser(__doc__, learning_rate=1e-3)
    parser.add_argument("--address", help="HOST:PORT of process 0; found alone on a TPU slice")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int, help="the number of this one, from 0")
    parser.add_argument("--model", type=int, default=1, help="devices that share each weight")
    parser.add_argument("--checkpoints", default="checkpoints")
    parser.add_argument("--out", default="rgemma_python")
    args = parser.parse_args()
    if args.processes != 1:
        keras.distribution.initialize(args.address, args.processes, args.process)

    count = len(keras.distribution.list_devices())
    mesh = keras.distribution.DeviceMesh((count // args.model, args.model), ("batch", "model"))
    layout_map = keras_rgemma.RGemmaBackbone.get_layout_map(mesh)
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name="batch")
    )
    keras.utils.set_random_seed(0)  # the same in every process

    learned, held_out = python_questions.conversations()
    lm = keras_rgemma.RGemmaCausalLM.from_preset(args.preset, dtype=args.dtype)
    lm.preprocessor.sequence_length = 128
    lm.compile(AdamW(args.learning_rate))
    # The last batch must be whole: the mesh divides its rows.
    rows = (len(learned[: args.examples]) // args.batch_size) * args.batch_size
    learned, held_out = learned[:rows], held_out[: len(held_out) // count * count]
    folder, steps = pathlib.Path(args.checkpoints).resolve(), rows // args.batch_size
    done = 0
    if folder.exists() and any(x.name.isdecimal() for x in folder.iterdir()):
        lm.load_weights(folder)
        done = int(lm.optimizer.iterations) // steps
    before = lm.evaluate(held_out, batch_size=count, verbose=0, return_dict=True)["loss"]
    lm.fit(
        learned,
        batch_size=args.batch_size,
        initial_epoch=done,
        epochs=args.epochs,
        callbacks=[keras.callbacks.OrbaxCheckpoint(str(folder))],
    )
    after = lm.evaluate(held_out, batch_size=count, verbose=0, return_dict=True)["loss"]
    lm.save_to_preset(args.out)
    print(f"held-out loss {before:.3f} -> {after:.3f}; the preset is {args.out}")


if __name__ == "__main__":
    main()
