"""Trains a preset in several processes on PyTorch, with DistributedDataParallel.

    KERAS_BACKEND=torch torchrun --nproc-per-node 2 examples/several_processes_torch.py

Each process takes its rows of a batch, gradients are averaged, and the first one writes a preset.
It prints the loss of each epoch. Keras' own `fit` would train each process apart, and refuses.
"""

import keras
import python_questions
import torch
from torch.nn.parallel import DistributedDataParallel

import keras_rgemma


def loss_of(model, x, y, weight):
    """The mean loss of the tokens that have one, as `fit` has it."""
    logits = model(x).flatten(0, 1).float()
    losses = torch.nn.functional.cross_entropy(logits, y.flatten().long(), reduction="none")
    return (losses * weight.flatten()).mean()


def main():
    args = python_questions.parser(__doc__, learning_rate=1e-3).parse_args()
    is_on_gpu = torch.cuda.is_available()
    torch.distributed.init_process_group("nccl" if is_on_gpu else "gloo")
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if is_on_gpu:
        torch.cuda.set_device(rank % torch.cuda.device_count())
    keras.utils.set_random_seed(0)

    learned, _ = python_questions.conversations()
    lm = keras_rgemma.RGemmaCausalLM.from_preset(args.preset, dtype=args.dtype)
    lm.preprocessor.sequence_length = 128
    x, y, weight = keras.tree.map_structure(
        keras.ops.convert_to_tensor, lm.preprocessor(learned[: args.examples])
    )
    ddp = DistributedDataParallel(lm)
    optimizer = torch.optim.AdamW(lm.parameters(), args.learning_rate)
    size = args.batch_size // count  # rows of this process
    for _ in range(args.epochs):
        losses = []
        # The same number of whole batches in every process.
        for start in range(0, len(y) - args.batch_size + 1, args.batch_size):
            own = slice(start + rank * size, start + (rank + 1) * size)
            optimizer.zero_grad()
            loss = loss_of(ddp, {k: v[own] for k, v in x.items()}, y[own], weight[own])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        mean = torch.stack(losses).mean()
        torch.distributed.all_reduce(mean)
        if rank == 0:
            print(f"loss {mean.item() / count:.4f}")
    if rank == 0:
        lm.save_to_preset("rgemma_python")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
