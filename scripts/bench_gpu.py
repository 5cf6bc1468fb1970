"""Time the parts of a TopK step on a GPU, relative to its lower bound: the matrix product of the encoder.

    python scripts/bench_gpu.py                                # three sizes in bfloat16
    python scripts/bench_gpu.py --dtype float32 --tf32
    python scripts/bench_gpu.py --sizes 768x24576 --k 32 --batch 4096 --json times.json

Parts run in the order A B C A B C and are timed by the clock of the device. The table shows the median over rounds, and the
memory that a part allocates. `x product` is the time of a part divided by that of the product alone (x @ W_enc.T + b_enc, in the
same chunks of rows). "torch" is saekit's reference backend with autograd. "sparsify" is that library's fused encoder and Triton
decoder, if installed (pip install --no-deps eai-sparsify simple-parsing docstring-parser natsort schedulefree).

Without a GPU, the script prints a message and ends.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

Part = Callable[[], object]


class Task(NamedTuple):
    """A size: width D, latents F, latents per token k, tokens B."""

    width: int
    latents: int
    k: int
    batch: int


def parts(task: Task, device: str, dtype: torch.dtype) -> dict[str, Part]:
    """The timed parts, by name. The first is the product."""
    from saekit.sae import kernels
    from saekit.sae.kernels import gpu
    from saekit.sae.kernels.gpu_adam import Constants, adam_rows

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    x, b_enc, b_dec = draw(task.batch, task.width), torch.zeros(task.latents, device=device, dtype=dtype), draw(task.width)
    W_dec = normalize(draw(task.latents, task.width), dim=1)
    W_enc, error = W_dec.clone(), draw(task.batch, task.width)
    weights = [tensor.requires_grad_() for tensor in (W_enc, b_enc, W_dec, b_dec)]
    values, latents = kernels.encode_topk(x, W_enc.detach(), b_enc.detach(), task.k, backend="triton")
    leaf = values.clone().requires_grad_()
    chunks = x.split(max(1, gpu.CHUNK_NUMBERS // task.latents))

    @torch.no_grad()
    def product(then: Callable[[Tensor], object] = lambda pre: None) -> None:
        for chunk in chunks:
            then(linear(chunk, W_enc, b_enc))

    def decoder(decode: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Part]:
        return {
            "decode": lambda: decode(values, latents),
            "decode, with gradients": lambda: torch.autograd.grad(decode(leaf, latents), [leaf, W_dec, b_dec], error),
        }

    def step(encode: Callable[[], tuple[Tensor, Tensor]], decode: Callable[[Tensor, Tensor], Tensor]) -> Part:
        return lambda: torch.autograd.grad((decode(*encode()) - x).square().sum(), weights)

    made: dict[str, Part] = {
        "product": product,
        "product, torch.topk": lambda: product(lambda pre: pre.topk(task.k, sorted=False)),
        "product, saekit topk": lambda: product(lambda pre: kernels.topk(pre, task.k, backend="triton")),
    }
    backends: tuple[kernels.Backend, ...] = ("triton", "torch")
    for backend in backends:

        def encode(backend: kernels.Backend = backend) -> tuple[Tensor, Tensor]:
            return kernels.encode_topk(x, W_enc, b_enc, task.k, backend=backend)

        def decode(values: Tensor, latents: Tensor, backend: kernels.Backend = backend) -> Tensor:
            return kernels.gather_decode(values, latents, W_dec, b_dec, backend=backend)

        whose = "saekit" if backend == "triton" else "torch"
        made |= {f"{whose}: {name}": part for name, part in decoder(decode).items()}
        made[f"{whose}: encode, with gradients"] = lambda encode=encode: torch.autograd.grad(encode()[0], [W_enc, b_enc], values)
        made[f"{whose}: all but the optimiser"] = step(encode, decode)
    made |= _sparsify(x, weights, task.k, values, decoder, step)

    start, order = gpu.by_latent(latents.flatten(), task.latents)
    rows = (order // task.k, values.flatten()[order], error)
    W, mean, square = (torch.zeros(task.latents, task.width, device=device) for _ in range(3))
    W += normalize(torch.randn_like(W), dim=1)
    constants = Constants(0.9, 0.999, 1e-3, 1.0, 6.25e-10)

    def dense_adam() -> None:
        W.grad = gpu.sum_rows(start, *rows, dtype=torch.float32)
        torch_adam.step()
        W.grad = None

    torch_adam = torch.optim.Adam([W], lr=1e-3, fused=True)
    made["saekit: Adam of W_dec, unit rows"] = lambda: adam_rows(W, mean, square, start, *rows, constants, unit_rows=True)
    made["torch: fused Adam of W_dec"] = dense_adam
    return made


def _sparsify(
    x: Tensor,
    weights: list[Tensor],
    k: int,
    values: Tensor,
    decoder: Callable[[Callable[[Tensor, Tensor], Tensor]], dict[str, Part]],
    step: Callable[..., Part],
) -> dict[str, Part]:
    try:
        from sparsify.fused_encoder import fused_encoder
        from sparsify.xformers import xformers_embedding_bag
    except ImportError as error:
        print(f"sparsify is skipped: {error}", file=sys.stderr)
        return {}
    W_enc, b_enc, W_dec, b_dec = weights

    def encode() -> tuple[Tensor, Tensor]:
        output = fused_encoder(x, W_enc, b_enc, k, "topk")
        return output.top_acts, output.top_indices

    def decode(values: Tensor, latents: Tensor) -> Tensor:
        decoded: Tensor = xformers_embedding_bag(latents, W_dec, values)
        return decoded + b_dec

    made = {f"sparsify: {name}": part for name, part in decoder(decode).items()}
    made["sparsify: encode, with gradients"] = lambda: torch.autograd.grad(encode()[0], [W_enc, b_enc], values)
    made["sparsify: all but the optimiser"] = step(encode, decode)
    return made


def measure(part: Part) -> tuple[float, int]:
    """Milliseconds of one run by the clock of the device, and the bytes that the run allocates."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    part()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end), torch.cuda.max_memory_allocated() - before


def compare(task: Task, dtype: torch.dtype, rounds: int) -> dict[str, dict[str, float]]:
    """Time every part at one size, in alternation. Prints a table."""
    running = parts(task, "cuda", dtype)
    for name, part in list(running.items()):
        try:
            for _ in range(3):  # compiles, allocates, and warms the clock up
                measure(part)
        except torch.cuda.OutOfMemoryError:
            print(f"  {name}: skipped, because it does not fit into memory", file=sys.stderr)
            del running[name]
            torch.cuda.empty_cache()
    samples: dict[str, list[tuple[float, int]]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, part in running.items():
            samples[name].append(measure(part))
    result = {
        name: {"ms": statistics.median(ms for ms, _ in rows), "bytes": float(max(size for _, size in rows))}
        for name, rows in samples.items()
    }
    print(f"\nwidth {task.width}, {task.latents} latents, k {task.k}, batch {task.batch}, {dtype}; medians of {rounds}")
    print(f"{'':36}{'ms':>10}{'x product':>11}{'MiB':>9}")
    for name, row in result.items():
        print(f"{name:36}{row['ms']:10.3f}{row['ms'] / result['product']['ms']:11.2f}{row['bytes'] / 2**20:9.0f}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["768x24576", "2304x65536", "4096x131072"], help="width x latents")
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--tf32", action="store_true", help="let float32 products round their inputs to TF32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("No GPU that torch can use: nothing to measure. tests/sae/test_gpu_kernels.py tests the kernels without a GPU.")
        return
    if find_spec("triton") is None:
        print("Triton is not installed: nothing to measure. It comes with torch's CUDA builds, or: pip install triton")
        return
    torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, float32 products: {torch.get_float32_matmul_precision()}")
    result = {}
    for size in options.sizes:
        width, latents = map(int, size.split("x"))
        torch.manual_seed(0)
        result[size] = compare(Task(width, latents, options.k, options.batch), getattr(torch, options.dtype), options.rounds)
        torch.cuda.empty_cache()
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
