"""Kernels of sparse codes against dense float64, for every backend: ties, odd sizes, adversarial values for the screen."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saekit.errors import ConfigError
from saekit.sae.kernels import Backend, encode_abstopk, encode_topk, gather_decode, topk
from saekit.sae.kernels.threads import run_blocks

BACKENDS: tuple[Backend, ...] = ("torch", "numba")
ENCODERS = [("torch", None), ("numba", False), ("numba", True)]
many = settings(max_examples=40, deadline=None)


def _data(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _check_topk(pre: Tensor, values: Tensor, indices: Tensor, k: int) -> None:
    assert values.shape == indices.shape == (len(pre), k)
    assert indices.dtype == torch.int64
    assert torch.equal(pre.gather(1, indices), values)
    assert torch.equal(values.sort(1, descending=True).values, pre.topk(k).values)
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("backend", BACKENDS)
@many
@given(st.integers(0, 9), st.integers(1, 300), st.data(), st.sampled_from(["plain", "ties", "constant", "infinite"]))
def test_topk_is_exact(backend: Backend, n: int, n_columns: int, data: st.DataObject, kind: str) -> None:
    k = data.draw(st.integers(1, n_columns))
    pre = _data(n_columns, n, n_columns)
    if kind == "ties":
        pre = pre.round()
    if kind == "constant":
        pre = torch.full_like(pre, -2.5)
    if kind == "infinite":
        pre = pre.masked_fill(pre < 0.5, -torch.inf)
    _check_topk(pre, *topk(pre, k, backend=backend), k)


def test_topk_of_a_wide_matrix_in_many_blocks() -> None:
    pre = _data(0, 700, 20_000)
    _check_topk(pre, *topk(pre, 40, backend="numba"), 40)
    _check_topk(pre[:, ::3], *topk(pre[:, ::3], 5, backend="numba"), 5)  # not contiguous


@pytest.mark.parametrize("backend", BACKENDS)
@many
@given(st.integers(0, 9), st.integers(0, 11), st.integers(1, 40), st.integers(1, 70), st.booleans())
def test_gather_decode_is_the_dense_product(backend: Backend, n: int, K: int, F: int, D: int, biased: bool) -> None:
    values, W_dec = _data(1, n, K), _data(2, F, D)
    indices = torch.randint(F, (n, K), generator=torch.Generator().manual_seed(3))  # gradients of repeated latents add up
    b_dec = _data(4, D) if biased else None
    dense = torch.zeros(n, F, dtype=torch.float64).scatter_add(1, indices, values.double())
    expected = dense @ W_dec.double() + (0 if b_dec is None else b_dec.double())
    out = gather_decode(values, indices, W_dec, b_dec, backend=backend)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)


def _check_code(x: Tensor, W: Tensor, b: Tensor | None, k: int, values: Tensor, indices: Tensor) -> None:
    """Check that the code is optimal up to float32 rounding: its values are exact, and no larger latent is missing."""
    pre = x.double() @ W.double().T + (0 if b is None else b.double())
    size = x.double().norm(dim=1, keepdim=True) * W.double().norm(dim=1).max() + (0 if b is None else b.double().abs().max())
    slack = 1e-6 * size + 1e-12
    assert values.shape == indices.shape == (len(x), k)
    assert all(len(set(row)) == k for row in indices.tolist())
    assert ((values - pre.gather(1, indices).clamp(min=0)).abs() <= slack).all()
    best = pre.topk(k).values.clamp(min=0)
    assert ((values.sort(1, descending=True).values - best).abs() <= slack).all()


@pytest.mark.parametrize(("backend", "screen"), ENCODERS)
@many
@given(st.integers(0, 70), st.integers(1, 50), st.integers(1, 200), st.data(), st.sampled_from([0.0, 0.1, 30.0]))
def test_encode_topk_is_exact(
    backend: Backend, screen: bool | None, n: int, D: int, F: int, data: st.DataObject, bias: float
) -> None:
    k = data.draw(st.integers(1, F))
    x, W = _data(5, n, D) * 10 ** data.draw(st.integers(-3, 3)), _data(6, F, D)
    W = W * _data(7, F, 1).exp()  # rows with very different norms
    b = _data(8, F) * bias if bias else None
    _check_code(x, W, b, k, *encode_topk(x, W, b, k, backend=backend, screen=screen))


@pytest.mark.parametrize(("backend", "screen"), ENCODERS)
def test_encode_topk_distinguishes_latents_that_bfloat16_does_not(backend: Backend, screen: bool | None) -> None:
    # Every latent has 7 copies that differ by less than bfloat16 resolves, so that the screen sees ties or a wrong order.
    k, twins = 12, 8
    W = (_data(9, 64, 96).repeat_interleave(twins, 0) * (1 + 1e-4 * _data(10, 64 * twins, 1))).contiguous()
    x, b = _data(11, 300, 96), 1e-3 * _data(12, 64 * twins)
    values, indices = encode_topk(x, W, b, k, backend=backend, screen=screen)
    _check_code(x, W, b, k, values, indices)

    def right(found: Tensor) -> float:
        exact = (x.double() @ W.double().T + b.double()).topk(k).indices
        return (found.sort(1).values == exact.sort(1).values).all(1).float().mean().item()

    assert right((x.bfloat16() @ W.bfloat16().T + b).topk(k).indices) < 0.2
    assert right(indices) > 0.9  # the remaining latents are ties in float32


@pytest.mark.parametrize("backend", BACKENDS)
@many
@given(st.integers(0, 70), st.integers(1, 50), st.integers(1, 200), st.data(), st.sampled_from([0.0, 0.1, 30.0]))
def test_encode_abstopk_is_exact(backend: Backend, n: int, D: int, F: int, data: st.DataObject, bias: float) -> None:
    k = data.draw(st.integers(1, F))
    x, W, b = _data(5, n, D), _data(6, F, D) * _data(7, F, 1).exp(), _data(8, F) * bias if bias else None
    values, indices = encode_abstopk(x, W, b, k, backend=backend)
    assert values.shape == indices.shape == (n, k)
    assert all(len(set(row)) == k for row in indices.tolist())
    pre = x.double() @ W.double().T + (0 if b is None else b.double())
    slack = 1e-6 * (pre.abs().amax(1, keepdim=True) + x.norm(dim=1, keepdim=True) * W.norm(dim=1).max())
    assert ((values - pre.gather(1, indices)).abs() <= slack).all()  # with their signs
    assert ((values.abs().sort(1, descending=True).values - pre.abs().topk(k).values).abs() <= slack).all()


@pytest.mark.parametrize(("backend", "screen"), ENCODERS)
def test_rows_with_fewer_positive_latents_than_k_are_padded_with_zero(backend: Backend, screen: bool | None) -> None:
    x, W, b = _data(13, 90, 40), _data(14, 200, 40), torch.full((200,), -15.0)
    values, _ = encode_topk(x, W, b, 20, backend=backend, screen=screen)
    assert torch.equal((values > 0).sum(1), ((x @ W.T + b) > 0).sum(1))
    assert (values > 0).sum(1).max() < 20
    assert (values >= 0).all()


@pytest.mark.parametrize("screen", [False, True])
def test_encoding_does_not_depend_on_threads_or_neighbours(screen: bool) -> None:
    x, W = _data(15, 2000, 48), _data(16, 6000, 48)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = encode_topk(x, W, None, 9, backend="numba", screen=screen)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        one = encode_topk(x, W, None, 9, backend="numba", screen=screen)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(two[0], one[0])
    assert torch.equal(two[1], one[1])


def test_an_interrupted_start_of_the_threads_leaves_none_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    from saekit.sae.kernels import threads

    class Interrupted(threading.Barrier):
        def wait(self, timeout: float | None = None) -> int:
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            return super().wait(timeout)

    before = set(threading.enumerate())
    monkeypatch.setattr(threading, "Barrier", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        threads._started(2)
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()


def test_not_finite_rows_give_nan_and_spare_the_others() -> None:
    x, W = _data(17, 128, 40), _data(18, 300, 40)
    x[3] = torch.nan
    x[5, 7] = torch.inf
    for screen in (False, True):
        values, indices = encode_topk(x, W, None, 4, backend="numba", screen=screen)
        assert values[3].isnan().all()
        assert not values[5].isfinite().all()
        assert indices.min() >= 0
        assert indices.max() < 300
        good = torch.ones(128, dtype=torch.bool)
        good[[3, 5]] = False
        _check_code(x[good], W, None, 4, values[good], indices[good])


def test_torch_backend_has_the_gradients_of_dense_float64() -> None:
    tensors = [
        _data(19, 6, 5).double(),
        _data(20, 13, 5).double(),
        _data(21, 13).double(),
        _data(22, 13, 7).double(),
        _data(23, 7).double(),
    ]
    x, W_enc, b_enc, W_dec, b_dec = (tensor.requires_grad_() for tensor in tensors)

    def sparse(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        return gather_decode(*encode_topk(x, W_enc, b_enc, 4), W_dec, b_dec)

    def dense(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        pre = x @ W_enc.T + b_enc
        keep = torch.zeros_like(pre).scatter(1, pre.topk(4).indices, 1)
        return (torch.relu(pre) * keep) @ W_dec + b_dec

    weight = _data(24, 6, 7).double()
    one, two = sparse(x, W_enc, b_enc, W_dec, b_dec), dense(x, W_enc, b_enc, W_dec, b_dec)
    torch.testing.assert_close(one, two)
    inputs = (x, W_enc, b_enc, W_dec, b_dec)
    for a, b in zip(torch.autograd.grad((one * weight).sum(), inputs), torch.autograd.grad((two * weight).sum(), inputs)):
        torch.testing.assert_close(a, b)


def test_auto_uses_torch_if_numba_is_unsupported() -> None:
    x, W = _data(25, 4, 6), _data(26, 9, 6)
    assert encode_topk(x.double(), W.double(), None, 3)[0].dtype == torch.float64
    assert encode_topk(x.clone().requires_grad_(), W, None, 3)[0].requires_grad
    with torch.no_grad():
        assert not encode_topk(x.clone().requires_grad_(), W, None, 3, backend="numba")[0].requires_grad
    with pytest.raises(ConfigError, match="float64"):
        topk(x.double(), 2, backend="numba")
    with pytest.raises(ConfigError, match="gradient"):
        gather_decode(x.clone().requires_grad_(), torch.zeros(4, 6, dtype=torch.int64), W, backend="numba")


@pytest.mark.parametrize("k", [0, 10])
def test_impossible_k_is_named(k: int) -> None:
    with pytest.raises(ConfigError, match=f"k={k}"):
        encode_topk(_data(27, 4, 6), _data(28, 9, 6), None, k)


def test_blocks_raise_what_their_work_raises_and_may_nest() -> None:
    def fail(start: int, stop: int) -> None:
        if start == 4:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_blocks(fail, 8, 2)
    done: list[int] = []
    run_blocks(lambda a, b: run_blocks(lambda c, d: done.append(a + c), 2, 1), 6, 2)
    assert sorted(done) == [0, 1, 2, 3, 4, 5]


def test_kernels_may_be_called_from_several_threads() -> None:
    x, W = _data(29, 500, 32), _data(30, 1000, 32)
    expected = encode_topk(x, W, None, 5, backend="numba")[0]
    with ThreadPoolExecutor(3) as threads:
        for values in threads.map(lambda _: encode_topk(x, W, None, 5, backend="numba")[0], range(6)):
            assert torch.equal(values, expected)
