"""Compiles the Triton kernels for GPUs, and measures them where one is.

    python benchmarks/kernels_triton.py
    python benchmarks/kernels_triton.py --devices H100 --sizes 2b --write kernels_triton

Compiling needs no GPU, but Triton (`pip install triton`), which brings the compilers of NVIDIA
along. Told are the registers of a thread, bytes of its stack (registers that were spilled to
memory), shared memory, and the bytes that the program loads and stores for each element, counted in
its PTX, beside the floor: each array read or written once. On a machine with a CUDA GPU the share
of the bandwidth of a copy is measured, too, beside PyTorch's operations and the packages
flash-linear-attention and accelerated-scan where they are installed. `--write NAME` writes
benchmarks/results/NAME.json and benchmarks/NAME.md.
"""

import argparse
import functools
import importlib.util
import pathlib
import re
import statistics
import subprocess
import tempfile

import torch
import triton
from kernel_sizes import ARRAYS, SIZES, floor, table
from publish import publish
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from keras_rgemma.benchmarks.machine import versions
from keras_rgemma.generation.torch import gpu
from keras_rgemma.generation.torch import triton_kernels as token_kernels
from keras_rgemma.ops.linear_recurrence.torch import triton_kernels, triton_operators
from keras_rgemma.ops.linear_recurrence.torch.chunked import linear_recurrence as chunked

FOLDER = pathlib.Path(__file__).parent
TOOLS = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
DEVICES = {"T4": 75, "A100": 80, "H100": 90}  # compute capabilities
# The kernels of a token at the sizes of 2B: their constants, and how many warps a program has.
TOKEN_KERNELS = {
    "rms_norm_kernel": ({"WIDTH": 2560, "BLOCK": 4096}, 8),
    "rg_lru_kernel": ({"WIDTH": 2560, "HAS_MASK": True, "BLOCK": gpu.BLOCK}, 4),
    "conv_kernel": ({"WIDTH": 2560, "REACH": 3, "HAS_MASK": True, "BLOCK": gpu.BLOCK}, 4),
    "rope_kernel": ({"HEADS": 10, "SIZE": 256, "HALF": 64, "BLOCK": 256}, 1),
    "gated_gelu_kernel": ({"BLOCK": gpu.BLOCK}, 4),
}
# Of their arguments those that have not the dtype of the model.
TOKEN_TYPES = {"epsilon": "fp32", "decay_scale": "fp32", "SIZE": "i32", "is_token_ptr": "*i8"}
TOKEN_TYPES |= dict.fromkeys(("cos_ptr", "sin_ptr"), "*fp32")
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def compile_kernel(direction, device, dtype, width):
    """Compiles a kernel as it is launched; returns Triton's compiled kernel and its steps."""
    kernel, steps = {
        "forward": (triton_kernels.linear_recurrence_kernel, triton_operators.STEPS),
        "gradient": (
            triton_kernels.linear_recurrence_gradient_kernel,
            triton_operators.GRADIENT_STEPS,
        ),
    }[direction]
    of_dtype = {"x_ptr", "a_ptr", "x_gradient_ptr", "a_gradient_ptr"}
    signature = {
        name: f"*{DTYPES[dtype] if name in of_dtype else 'fp32'}"
        for name in kernel.arg_names
        if name.endswith("_ptr")
    }
    constants = {
        "WIDTH": width,
        "SPANS": triton_operators.SPANS,
        "STEPS": steps,
        "CHANNELS": triton_operators.CHANNELS,
    }
    # PyTorch's arrays begin at multiples of 16 bytes.
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in signature}
    signature |= {"length": "i32", **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", DEVICES[device], 32)
    return triton.compile(source, target=target, options=triton_operators.OPTIONS), steps


def compile_token_kernel(name, device, dtype):
    """Compiles a kernel of a token as it is launched, and describes the program in a dict."""
    constants, warps = TOKEN_KERNELS[name]
    kernel = getattr(token_kernels, name)
    types = {**TOKEN_TYPES, **dict.fromkeys(constants, "constexpr")}
    if name == "rg_lru_kernel":
        types |= dict.fromkeys(("state_ptr", "new_state_ptr"), "*fp32")
    signature = {x: types.get(x, f"*{DTYPES[dtype]}") for x in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", DEVICES[device], 32)
    compiled = triton.compile(source, target=target, options={"num_warps": warps})
    registers, stack = resources(compiled.asm["cubin"])
    shared = compiled.metadata.shared
    numbers = {"registers": registers, "stack_bytes": stack, "shared_bytes": shared}
    return {"kernel": name, "device": device, "dtype": dtype, **numbers}


def resources(cubin):
    """Reads the registers of a thread and the bytes of its stack from a compiled program."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()
    return int(registers), int(stack)


def traffic(ptx, threads):
    """Counts the bytes that a program moves between its registers and global memory.

    Returns:
        A pair: bytes of all threads in one iteration of its loop, and outside of the loop.
    """
    blocks = re.split(r"^(\$L__BB\w+):", ptx, flags=re.MULTILINE)
    labels, bodies = ["", *blocks[1::2]], blocks[::2]
    # A block is in the loop if it lies between a label and the jump that leads back to it.
    (start, end), *others = {
        (labels.index(target), i)
        for i, body in enumerate(bodies)
        for target in re.findall(r"\bbra(?:\.uni)?\s+(\$L__BB\w+);", body)
        if target in labels[: i + 1]
    }
    assert not others, "the kernel has one loop"
    inside, outside = 0, 0
    for i, body in enumerate(bodies):
        moved = 0
        for vector, bits in re.findall(r"\b(?:ld|st)\.global\S*?(?:\.v(\d))?\.b(\d+)\b", body):
            moved += int(vector or 1) * int(bits) // 8 * threads
        if start <= i <= end:
            inside += moved
        else:
            outside += moved
    return inside, outside


def compiled(direction, device, dtype, size):
    """Compiles a kernel for a device and describes the program in a dict."""
    _, length, width = SIZES[size]
    kernel, steps = compile_kernel(direction, device, dtype, width)
    registers, stack = resources(kernel.asm["cubin"])
    spans, channels = triton_operators.SPANS, triton_operators.CHANNELS
    inside, outside = traffic(kernel.asm["ptx"], 32 * triton_operators.OPTIONS["num_warps"])
    moved = inside / (spans * steps * channels) + outside / (length * channels)
    return {
        "kernel": direction,
        "device": device,
        "size": size,
        "dtype": dtype,
        "registers": registers,
        "stack_bytes": stack,
        "shared_bytes": kernel.metadata.shared,
        "bytes_per_element": moved,
        "floor": floor(direction, dtype, length),
    }


def seconds_of(function, repeats=20):
    """Measures the median of the seconds that a function keeps the GPU busy."""
    times = []
    for i in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def copy_bandwidth():
    """Measures the bytes a second that a copy of 1 GiB reads and writes."""
    source = torch.ones(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source))


def candidates(x, a, initial_state):
    """Lists the implementations at hand: a function of the arrays that it takes, and these."""
    found = {
        "triton": (lambda *y: triton_operators.linear_recurrence(*y)[0], (x, a, initial_state)),
        "chunked": (lambda *y: chunked(*y)[0], (x, a, initial_state)),
    }
    if importlib.util.find_spec("fla") is not None:
        fla = importlib.import_module("fla.ops.hgrn")
        # It takes the logarithm of a.
        found["flash-linear-attention, chunk_hgrn"] = (
            lambda x, g, state: fla.chunk_hgrn(x, g, state, output_final_state=True)[0],
            (x, a.log(), initial_state),
        )
    if importlib.util.find_spec("accelerated_scan") is not None:
        scan = importlib.import_module("accelerated_scan.warp").scan
        # Time is its last axis, and it takes no initial state.
        found["accelerated-scan, warp"] = (
            scan,
            tuple(y.transpose(1, 2).contiguous() for y in (a, x)),
        )
    return found


def measured(size, dtype, bandwidth):
    """Measures each implementation on this machine's GPU; returns a list of dicts."""
    batch, length, width = SIZES[size]
    dtype_ = getattr(torch, dtype)
    x = torch.randn(batch, length, width, device="cuda").to(dtype_)
    a = (0.9 + 0.0999 * torch.rand(batch, length, width, device="cuda")).to(dtype_)
    initial_state = torch.zeros(batch, width, device="cuda")
    results = []
    for name, (function, arrays) in candidates(x, a, initial_state).items():
        leaves = [y.detach().requires_grad_() for y in arrays]
        h = function(*leaves)
        h_gradient = torch.randn_like(h)
        with torch.no_grad():
            forward = seconds_of(functools.partial(function, *arrays))
        gradient = seconds_of(
            functools.partial(
                torch.autograd.grad, h, leaves, h_gradient, retain_graph=True, allow_unused=True
            )
        )
        result = {"implementation": name, "size": size, "dtype": dtype}
        for direction, seconds in (("forward", forward), ("gradient", gradient)):
            moved = floor(direction, dtype, length) * x.numel()
            result |= {f"{direction}_ms": 1e3 * seconds}
            result |= {f"{direction}_share": moved / seconds / bandwidth}
        print(result, flush=True)
        results.append(result)
    return results


def markdown(report):
    """Writes a report as a page."""
    lines = [
        "# The Triton kernels",
        "",
        f"Compiled by Triton {report['versions']['triton']} for GPUs that need not be at hand. A "
        "stack of 0 bytes means that no register was spilled. Bytes an element are counted in the "
        "program, states and what the program loads twice included; the floor is to read and write "
        "each array once.",
        "",
        f"```\n{report['command']}\n```",
        "",
        "| kernel | device | size | x and a | registers | stack | shared | bytes an element "
        "| floor | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for x in report["compiled"]:
        cells = [x[name] for name in ("kernel", "device", "size", "dtype", "registers")]
        cells += [x["stack_bytes"], x["shared_bytes"], f"{x['bytes_per_element']:.2f}"]
        cells += [f"{x['floor']:.2f}", f"{x['bytes_per_element'] / x['floor']:.3f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        "The kernels of a token (`generation/torch/triton_kernels.py`) at the sizes of 2B. They "
        "read and write each array once.",
        "",
        "| kernel | device | dtype | registers | stack | shared |",
        "|---|---|---|---|---|---|",
    ]
    names = ("kernel", "device", "dtype", "registers", "stack_bytes", "shared_bytes")
    lines += [f"| {' | '.join(str(x[name]) for name in names)} |" for x in report["token"]]
    lines.append("")
    if not report["measured"]:
        lines.append(
            "No GPU was at hand. They have run on an H100 (gpu.md), where these were not measured."
        )
        return "\n".join(lines) + "\n"
    lines += [
        f"Measured on {report['gpu']}, which copies {report['copy_gb_per_s']:.0f} GB/s. A share is "
        "that of the floor's bytes in the time to the copy's rate.",
        "",
        *table(report["measured"]),
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", choices=DEVICES, nargs="+", default=list(DEVICES))
    parser.add_argument("--sizes", choices=SIZES, nargs="+", default=list(SIZES))
    parser.add_argument("--dtypes", choices=DTYPES, nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--write", metavar="NAME", help="write results/NAME.json and NAME.md")
    args = parser.parse_args()
    report = {
        "command": "python benchmarks/kernels_triton.py "
        f"--devices {' '.join(args.devices)} --sizes {' '.join(args.sizes)} "
        f"--dtypes {' '.join(args.dtypes)}" + (f" --write {args.write}" if args.write else ""),
        "versions": {**versions(), "triton": triton.__version__},
        "compiled": [
            compiled(direction, device, dtype, size)
            for direction in ARRAYS
            for device in args.devices
            for size in args.sizes
            for dtype in args.dtypes
        ],
        "token": [
            compile_token_kernel(name, device, dtype)
            for name in TOKEN_KERNELS
            for device in args.devices
            for dtype in args.dtypes
        ],
        "measured": [],
    }
    if torch.cuda.is_available():
        bandwidth = copy_bandwidth()
        report |= {"gpu": torch.cuda.get_device_name(), "copy_gb_per_s": bandwidth / 1e9}
        for size in args.sizes:
            for dtype in args.dtypes:
                report["measured"] += measured(size, dtype, bandwidth)
    publish(FOLDER, args.write, report, markdown(report))


if __name__ == "__main__":
    main()
