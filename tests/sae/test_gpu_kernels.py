"""The Triton kernels against dense float64, values and gradients.

Without a GPU, the kernels run in Triton's interpreter on CPU tensors, and a separate test runs the compiler. With a GPU, the same
tests run on it. They do not test speed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from saekit.errors import ConfigError
from saekit.sae import kernels

pytest.importorskip("triton", reason="needs triton")

from saekit.sae.kernels import gpu
from saekit.sae.kernels.gpu_adam import Constants, adam_rows

DTYPES = (torch.float32, torch.bfloat16)
WIDTHS = st.sampled_from([1, 3, 16, 33, 257, 300])  # sizes below, at and above that of a block, and a prime
few = settings(max_examples=8, deadline=None)  # the interpreter needs milliseconds for every program of a grid


@pytest.fixture(scope="module", params=["interpreter", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU: the kernels ran in the interpreter only")
    if request.param == "interpreter" and gpu.obstacle(torch.zeros(1)):
        pytest.skip("the kernels are compiled; TRITON_INTERPRET=1 runs them in the interpreter")
    return "cuda" if request.param == "cuda" else "cpu"


class Draw:
    """Reproducible random tensors."""

    def __init__(self, device: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        self.device, self.dtype, self.generator = device, dtype, torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.device, self.dtype).requires_grad_()

    def latents(self, n_latents: int, *shape: int) -> Tensor:
        return torch.randint(n_latents, shape, generator=self.generator).to(self.device)


def _starts(lengths: Sequence[int], device: str) -> Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0)


def _rows(start_B1: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(start_B1) - 1, device=start_B1.device), start_B1.diff())


def _agree(found: Tensor, exact: Tensor, inputs: Sequence[Tensor], exact_inputs: Sequence[Tensor]) -> None:
    """Compare values, and gradients for a random upstream gradient. The tolerance is the rounding of one result."""
    dtype = inputs[0].dtype

    def check(found: Tensor, exact: Tensor, name: str) -> None:
        assert found.shape == exact.shape, name
        assert found.dtype == dtype, name
        size = exact.abs().max().item() if exact.numel() else 0.0
        ulp = 2.0**-7 if dtype == torch.bfloat16 else 1e-6  # the interpreter truncates bfloat16 instead of rounding it
        torch.testing.assert_close(found.double(), exact, rtol=ulp, atol=1e-5 * size + 1e-12, msg=lambda text: f"{name}: {text}")

    check(found, exact, "value")
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(9)).to(found)
    grads = torch.autograd.grad(found, list(inputs), upstream)
    exact_grads = torch.autograd.grad(exact, list(exact_inputs), upstream.double(), retain_graph=True)
    for number, (grad, exact_grad) in enumerate(zip(grads, exact_grads)):
        check(grad, exact_grad, f"gradient {number}")


def _double(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("dtype", DTYPES)
@few
@given(st.lists(st.integers(0, 19), max_size=6), st.integers(1, 12), WIDTHS, st.booleans(), st.booleans())
def test_decoder(device: str, dtype: torch.dtype, lengths: list[int], F: int, D: int, biased: bool, ragged: bool) -> None:
    draw = Draw(device, dtype)
    if not ragged:
        lengths = [max(lengths, default=1)] * len(lengths)
    start, n = _starts(lengths, device), sum(lengths)
    latents = draw.latents(F, n)  # gradients of repeated latents add up
    values, W_dec, b_dec = draw(n), draw(F, D), draw(D)
    with torch.no_grad():
        values[::3] = 0  # padding
    inputs = [values, W_dec, b_dec][: 2 + biased]
    v, W, *b = exact_inputs = _double(*inputs)
    code = torch.zeros(len(lengths), F, dtype=torch.float64, device=device).index_put((_rows(start), latents), v, accumulate=True)
    exact = code @ W + (b[0] if biased else 0)
    shape = (n,) if ragged else (len(lengths), lengths[0] if lengths else 1)
    found = kernels.gather_decode(
        values.view(shape),
        latents.view(shape),
        W_dec,
        b_dec if biased else None,
        start_B1=start if ragged else None,
        backend="triton",
    )
    _agree(found, exact, inputs, exact_inputs)


@pytest.mark.parametrize("dtype", DTYPES)
@few
@given(st.lists(st.integers(0, 19), max_size=6), st.integers(1, 12), WIDTHS, st.booleans())
def test_encoder_at_given_latents(device: str, dtype: torch.dtype, lengths: list[int], F: int, D: int, biased: bool) -> None:
    draw, start = Draw(device, dtype), _starts(lengths, device)
    latents = draw.latents(F, sum(lengths))
    x, W_enc, b_enc = draw(len(lengths), D), draw(F, D), draw(F)
    inputs = [x, W_enc, b_enc][: 2 + biased]
    exact_x, exact_W, *exact_b = exact_inputs = _double(*inputs)
    exact = (exact_x @ exact_W.T + (exact_b[0] if biased else 0))[_rows(start), latents]
    for backend in ("triton", "torch") if dtype == torch.float32 else ("triton",):
        found = kernels.pre_activations(x, W_enc, b_enc if biased else None, latents, start_B1=start, backend=backend)
        _agree(found, exact, inputs, exact_inputs)


@pytest.mark.parametrize("dtype", DTYPES)
@few
@given(st.integers(0, 6), st.integers(1, 40), WIDTHS, st.data(), st.booleans())
def test_topk_encoder(device: str, dtype: torch.dtype, B: int, F: int, D: int, data: st.DataObject, biased: bool) -> None:
    k, draw = data.draw(st.integers(1, min(F, 12))), Draw(device, dtype)
    x, W_enc, b_enc = draw(B, D), draw(F, D), draw(F)
    inputs = [x, W_enc, b_enc][: 2 + biased]
    values, latents = kernels.encode_topk(x, W_enc, b_enc if biased else None, k, backend="triton")
    assert values.shape == latents.shape == (B, k)
    assert all(len(set(row)) == k for row in latents.tolist())
    exact_x, exact_W, *exact_b = exact_inputs = _double(*inputs)
    pre = exact_x @ exact_W.T + (exact_b[0] if biased else 0)
    slack = (1e-5 if dtype == torch.float32 else 2.0**-7) * (1 + pre.abs().amax(1, keepdim=True))
    best = pre.topk(k).values.clamp(min=0)
    assert ((values.sort(1, descending=True).values - best).abs() <= slack).all()
    # For selected latents that fire, values and gradients equal those of the dense product.
    exact = pre.gather(1, latents) * (values > 0)
    assert ((values - exact).abs() <= slack).all()
    upstream = draw(B, k).detach()
    grads = torch.autograd.grad(values, inputs, upstream)
    exact_grads = torch.autograd.grad(exact, exact_inputs, upstream.double())
    for grad, exact_grad in zip(grads, exact_grads):
        torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-5 if dtype == torch.float32 else 2.0**-7, atol=1e-4)


def test_abstopk_encoder(device: str) -> None:
    draw = Draw(device)
    inputs = x, W_enc, b_enc = draw(7, 9), draw(40, 9), draw(40)
    values, latents = kernels.encode_abstopk(x, W_enc, b_enc, 6, backend="triton")
    exact_x, exact_W, exact_b = exact_inputs = _double(*inputs)
    pre = exact_x @ exact_W.T + exact_b
    torch.testing.assert_close(values.double(), pre.gather(1, latents), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        values.double().abs().sort(1).values, pre.abs().topk(6).values.sort(1).values, rtol=1e-5, atol=1e-5
    )
    upstream = draw(7, 6).detach()
    grads = torch.autograd.grad(values, inputs, upstream)
    for grad, exact in zip(grads, torch.autograd.grad(pre.gather(1, latents), exact_inputs, upstream.double())):
        torch.testing.assert_close(grad.double(), exact, rtol=1e-5, atol=1e-4)


@few
@given(st.integers(0, 5), st.integers(1, 200), st.data(), st.sampled_from(["plain", "ties", "constant", "infinite"]))
def test_topk_is_exact(device: str, n: int, n_columns: int, data: st.DataObject, kind: str) -> None:
    n_columns *= data.draw(st.sampled_from([1, 8, 64]))  # groups of columns need a power of two
    k = data.draw(st.integers(1, min(n_columns, 50)))
    pre = Draw(device)(n, n_columns)
    with torch.no_grad():
        if kind == "ties":
            pre.round_()
        if kind == "constant":
            pre.fill_(-2.5)
        if kind == "infinite":
            pre.masked_fill_(pre < 2, -torch.inf)
    values, indices = kernels.topk(pre, k, backend="triton")
    assert torch.equal(pre.gather(1, indices), values)
    assert torch.equal(values.sort(1, descending=True).values, pre.topk(k).values)
    assert all(len(set(row)) == k for row in indices.tolist())
    (gradient,) = torch.autograd.grad(values.sum(), pre)
    assert torch.equal(gradient, torch.zeros_like(pre).scatter(1, indices, 1))


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that torch creates within the block."""

    bytes = 0

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        made = [tensor for tensor in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(tensor, Tensor)]
        self.bytes = max([self.bytes, *(tensor.untyped_storage().nbytes() for tensor in made)])
        return out


def test_memory_is_that_of_a_chunk_of_rows(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    B, F, D, k = 20, 16, 9, 4
    draw = Draw(device)
    inputs = draw(B, D), draw(F, D), draw(F), draw(F, D)

    def run() -> tuple[Tensor, ...]:
        x, W_enc, b_enc, W_dec = inputs
        x_hat = kernels.gather_decode(*kernels.encode_topk(x, W_enc, b_enc, k, backend="triton"), W_dec, backend="triton")
        return x_hat, *torch.autograd.grad(x_hat.square().sum(), inputs)

    with Largest() as whole:
        at_once = run()
    monkeypatch.setattr(gpu, "CHUNK_NUMBERS", 6 * F - 1)
    with Largest() as chunked:
        in_chunks = run()
    assert (
        whole.bytes >= 4 * B * F > chunked.bytes
    )  # one row for every entry would take 4 * B * k * D bytes, which is larger still
    for one, other in zip(at_once, in_chunks):
        torch.testing.assert_close(one, other)


def test_topk_with_auxk_trains_the_encoder_of_dead_latents(device: str) -> None:
    """The full loss of arXiv 2406.04093. Only its AuxK term reaches dead latents: they reconstruct the error."""
    B, D, F, k, k_aux = 5, 7, 30, 3, 4
    draw = Draw(device, torch.float64)
    x, W_enc, b_enc, W_dec, b_dec = inputs = [draw(B, D), draw(F, D), draw(F), draw(F, D), draw(D)]
    fires = torch.zeros(F, dtype=torch.bool, device=device)
    fires[kernels.encode_topk(x - b_dec, W_enc, b_enc, k, backend="triton")[1]] = True
    dead = (~fires).nonzero()[:, 0]

    def sparse() -> Tensor:
        centred = x - b_dec
        values, latents = kernels.encode_topk(centred, W_enc, b_enc, k, backend="triton")
        error = x - kernels.gather_decode(values, latents, W_dec, b_dec, backend="triton")
        aux_values, local = kernels.encode_topk(centred, W_enc[dead], b_enc[dead], k_aux, backend="triton")
        error_hat = kernels.gather_decode(aux_values, dead[local], W_dec, backend="triton")
        return error.square().sum() + (error.detach() - error_hat).square().sum() / 32

    def dense() -> Tensor:
        pre = (x - b_dec) @ W_enc.T + b_enc
        code = torch.relu(pre) * torch.zeros_like(pre).scatter(1, pre.topk(k).indices, 1)
        error = x - code @ W_dec - b_dec
        dead_pre = pre[:, dead]
        aux = torch.relu(dead_pre) * torch.zeros_like(dead_pre).scatter(1, dead_pre.topk(k_aux).indices, 1)
        return error.square().sum() + (error.detach() - aux @ W_dec[dead]).square().sum() / 32

    torch.testing.assert_close(sparse(), dense())
    grads, exact = torch.autograd.grad(sparse(), inputs), torch.autograd.grad(dense(), inputs)
    for grad, exact_grad in zip(grads, exact):
        torch.testing.assert_close(grad, exact_grad)
    assert grads[1][dead].abs().sum(1).count_nonzero() > 3
    assert grads[2][dead].count_nonzero() > 3


def test_gradients_are_right_to_first_order_in_float64(device: str) -> None:
    draw = Draw(device, torch.float64)
    latents, start = draw.latents(5, 9), _starts([4, 0, 5], device)

    def run(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        pre = kernels.pre_activations(x, W_enc, b_enc, latents, start_B1=start, backend="triton")
        return kernels.gather_decode(pre.tanh(), latents, W_dec, b_dec, start_B1=start, backend="triton")

    inputs = draw(3, 2), draw(5, 2), draw(5), draw(5, 3), draw(3)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_memory_may_lie_in_any_order(device: str) -> None:
    B, D, F, k = 5, 6, 30, 3
    draw = Draw(device)
    plain = [draw(B, D), draw(F, D), draw(F), draw(F, D), draw(D)]

    def spread(tensor: Tensor) -> Tensor:
        """The same numbers in column-major memory, and in memory with gaps."""
        wide = tensor.new_zeros(*(2 * size for size in reversed(tensor.shape)))[tuple([slice(None, None, 2)] * tensor.ndim)]
        return wide.permute(*reversed(range(tensor.ndim))).copy_(tensor).detach().requires_grad_()

    def run(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        values, latents = kernels.encode_topk(x, W_enc, b_enc, k, backend="triton")
        order = torch.arange(k - 1, -1, -1, device=device)
        return kernels.gather_decode(values.T[order].T, latents.T[order].T, W_dec, b_dec, backend="triton")

    other = [spread(tensor.detach()) for tensor in plain]
    assert not any(tensor.is_contiguous() for tensor in other)
    one, two = run(*plain), run(*other)
    torch.testing.assert_close(one, two)
    for a, b in zip(
        torch.autograd.grad(one.sum(), plain), torch.autograd.grad(two.sum(), other)
    ):  # the gradient of a sum is an expanded tensor
        torch.testing.assert_close(a, b)


def test_only_gradients_that_are_wanted_are_computed(device: str) -> None:
    draw = Draw(device)
    x, W_enc, b_enc, W_dec, b_dec = inputs = [draw(4, 3), draw(9, 3), draw(9), draw(9, 3), draw(3)]
    for tensor in inputs:
        for other in inputs:
            other.requires_grad_(other is tensor)
        out = kernels.gather_decode(*kernels.encode_topk(x, W_enc, b_enc, 2, backend="triton"), W_dec, b_dec, backend="triton")
        out.sum().backward()
    gradients = [tensor.grad for tensor in inputs]
    for tensor in inputs:
        tensor.requires_grad_().grad = None
    out = kernels.gather_decode(*kernels.encode_topk(x, W_enc, b_enc, 2, backend="torch"), W_dec, b_dec, backend="torch")
    for alone, exact in zip(gradients, torch.autograd.grad(out.sum(), inputs)):
        assert alone is not None
        torch.testing.assert_close(alone, exact)


def test_padding_reads_nothing(device: str) -> None:
    W_dec = Draw(device)(3, 4).detach()
    W_dec[2] = torch.nan
    values, latents = torch.tensor([[1.0, 0.0]], device=device), torch.tensor([[1, 2]], device=device)
    assert torch.equal(kernels.gather_decode(values, latents, W_dec, backend="triton"), W_dec[1:2])


def test_the_same_bits_every_time(device: str) -> None:
    draw = Draw(device)
    inputs = draw(20, 9), draw(4, 9), draw(4), draw(4, 9)  # every latent fires on many tokens

    def run() -> tuple[Tensor, ...]:
        x, W_enc, b_enc, W_dec = inputs
        out = kernels.gather_decode(*kernels.encode_topk(x, W_enc, b_enc, 2, backend="triton"), W_dec, backend="triton")
        return out, *torch.autograd.grad(out.square().sum(), inputs)

    assert all(torch.equal(one, other) for one, other in zip(run(), run()))


@pytest.mark.parametrize("unit_rows", [False, True])
@few
@given(st.integers(1, 5), WIDTHS, st.integers(0, 40), st.integers(1, 9))
def test_adam_is_that_of_the_dense_gradient(device: str, unit_rows: bool, F: int, D: int, n: int, n_rows: int) -> None:
    draw, steps = Draw(device), 2
    W = torch.nn.functional.normalize(draw(F, D).detach(), dim=1)
    dense = W.double().requires_grad_()
    adam = torch.optim.Adam([dense], lr=0.05, betas=(0.8, 0.95), eps=1e-6)
    mean, square = torch.zeros_like(W), torch.zeros_like(W)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saekit.sae.kernels.gpu_adam.BLOCK_NUMBERS", 2 * D)  # two latents at a time
        for step in range(1, steps + 1):
            latents, row, weight, table = draw.latents(F, n), draw.latents(n_rows, n), draw(n).detach(), draw(n_rows, D).detach()
            start, order = gpu.by_latent(latents, F)
            constants = Constants(0.8, 0.95, 0.05 / (1 - 0.8**step), (1 - 0.95**step) ** -0.5, 1e-6)
            adam_rows(W, mean, square, start, row[order], weight[order], table, constants, unit_rows=unit_rows)
            gradient = torch.zeros_like(dense).index_add(0, latents, weight.double()[:, None] * table.double()[row])
            with torch.no_grad():
                along = (gradient * dense).sum(1, keepdim=True)
                dense.grad = gradient - along * dense if unit_rows else gradient
                adam.step()
                if unit_rows:
                    dense /= dense.norm(dim=1, keepdim=True)
    torch.testing.assert_close(W.double(), dense.detach(), rtol=1e-4, atol=1e-4)


def test_adam_refuses_memory_layouts_that_it_cannot_update(device: str) -> None:
    W, start, none = (
        torch.ones(4, 3, device=device),
        torch.zeros(5, dtype=torch.int64, device=device),
        torch.zeros(0, device=device),
    )
    with pytest.raises(ConfigError, match="contiguous"):
        adam_rows(W.T, W, W, start, none.long(), none, W, Constants(0.9, 0.999, 1e-3, 1.0, 1e-8))


def test_backends_are_chosen_by_device_and_forced_by_name(device: str) -> None:
    draw = Draw(device)
    values, latents, W_dec = draw(2, 3), draw.latents(5, 2, 3), draw(5, 4)
    out = kernels.gather_decode(values, latents, W_dec)
    assert (type(out.grad_fn).__name__ == "_DecodeBackward") == (device == "cuda")
    with pytest.raises(ConfigError, match="complex64"):
        kernels.gather_decode(values.detach(), latents, W_dec.detach().to(torch.complex64), backend="triton")
    with pytest.raises(ConfigError, match="ragged"):
        kernels.gather_decode(*torch.zeros(2, 0), torch.zeros(5, 4), start_B1=torch.zeros(3, dtype=torch.int64), backend="numba")
    with pytest.raises(ConfigError, match="numba"):
        kernels.pre_activations(draw(2, 4), W_dec, None, latents, backend="numba")


COMPILE = """
import torch, triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from saekit.errors import ConfigError
from saekit.sae import kernels
from saekit.sae.kernels import gpu, gpu_adam, gpu_rows

blocks = {"BLOCK_E": gpu.BLOCK_E, "BLOCK_D": gpu.BLOCK_D}
fixed = {"start_ptr": "*i64", "row_ptr": "*i64", "gradient_ptr": "*fp32", "along_ptr": "*fp32"}
for kernel, name, constants in (
    (gpu_rows.sum_rows, "bf16", {"HAS_BIAS": True, "SUM": tl.float32, **blocks}),
    (gpu_rows.sum_rows, "fp32", {"HAS_BIAS": False, "SUM": tl.float32, **blocks, "BLOCK_D": 1}),
    (gpu_rows.dot_rows, "bf16", {"SUM": tl.float32, **blocks}),
    (gpu_rows.dot_rows, "fp64", {"SUM": tl.float64, **blocks}),
    (gpu_adam._step_rows, "bf16", {"HAS_ALONG": True, "UNIT_ROWS": True, "BLOCK_D": 4096}),
):
    floats = {"beta1", "beta2", "rate", "correction", "eps"}
    types = {arg: "*" + name if arg.endswith("_ptr") else "fp32" if arg in floats else "i32" for arg in kernel.arg_names} | fixed
    types = {arg: types[arg] for arg in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
    made = triton.compile(ASTSource(kernel, types, constants), target=GPUTarget("cuda", 90, 32))
    assert made.asm["cubin"] and made.metadata.shared < 48 << 10, kernel
try:
    kernels.topk(torch.zeros(2, 3), 1, backend="triton")
except ConfigError as error:
    assert "on cpu" in str(error), error
else:
    raise AssertionError("compiled kernels cannot read a CPU's memory")
"""


def test_kernels_compile_for_a_gpu() -> None:
    """The compiler is stricter than the interpreter: it must compile every kernel to machine code. This needs no GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
