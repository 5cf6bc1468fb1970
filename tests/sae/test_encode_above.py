"""All pre-activations above a floor, against dense float64, for every backend."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saekit.sae.kernels import Backend, encode_above

ENCODERS = [("torch", None), ("numba", False), ("numba", True)]


def _data(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _dense(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return x.double() @ W.double().T + (0 if b is None else b.double())


@pytest.mark.parametrize(("backend", "screen"), ENCODERS)
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 70), st.integers(1, 50), st.integers(1, 200), st.sampled_from(["scalar", "rows", "all", "none"]), st.booleans()
)
def test_every_entry_above_its_floor(backend: Backend, screen: bool, n: int, D: int, F: int, kind: str, biased: bool) -> None:
    x, W, b = _data(1, n, D), _data(2, F, D), 3 * _data(3, F) if biased else None
    floor = {
        "scalar": torch.tensor(0.7),
        "rows": 4 * _data(4, F),
        "all": torch.full((F,), -torch.inf),
        "none": torch.full((F,), torch.inf),
    }[kind]
    values, latents, start = encode_above(x, W, b, floor, backend=backend, screen=screen)
    assert start.shape == (n + 1,)
    assert latents.dtype == start.dtype == torch.int64
    assert int(start[0]) == 0
    assert int(start[-1]) == len(values) == len(latents)
    pre = _dense(x, W, b)
    slack = 1e-5 * (1 + pre.abs().max()) if n else 0.0
    found = torch.zeros_like(pre, dtype=torch.bool)
    for row in range(n):
        mine = latents[start[row] : start[row + 1]]
        assert torch.equal(mine, mine.unique())  # distinct and sorted
        found[row, mine] = True
        torch.testing.assert_close(values[start[row] : start[row + 1]].double(), pre[row, mine], atol=float(slack), rtol=1e-5)
    assert (values > floor.expand(F)[latents]).all()
    assert (pre[found] > (floor - slack).expand(n, F)[found]).all()
    assert (pre[~found] <= (floor + slack).expand(n, F)[~found]).all()


@pytest.mark.parametrize("screen", [False, True])
def test_many_blocks_give_what_one_row_gives(screen: bool) -> None:
    x, W, b = _data(1, 300, 24), _data(2, 20_000, 24), _data(3, 20_000)
    values, latents, start = encode_above(x, W, b, torch.tensor(8.0), backend="numba", screen=screen)
    for row in (0, 103, 299):
        alone = encode_above(x[row : row + 1], W, b, torch.tensor(8.0), backend="numba", screen=screen)
        assert torch.equal(alone[1], latents[start[row] : start[row + 1]])
        torch.testing.assert_close(alone[0], values[start[row] : start[row + 1]])


def test_a_screen_misses_nothing_near_the_floor() -> None:
    """Pre-activations that bfloat16 cannot distinguish, half of them just above the floor."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(64, generator=generator)
    W = base + 1e-3 * torch.randn(400, 64, generator=generator)
    x = base.repeat(70, 1) * (1 + 0.01 * torch.rand(70, 1, generator=generator))
    pre = _dense(x, W, None)
    floor = pre.median()
    assert (pre - floor).abs().max() < 2.0**-4 * floor
    expected = encode_above(x, W, None, floor.float(), backend="numba", screen=False)
    screened = encode_above(x, W, None, floor.float(), backend="numba", screen=True)
    missed = abs(len(expected[0]) - len(screened[0]))
    assert missed <= 1e-3 * len(expected[0])  # entries equal to the floor
    assert 0.3 < len(screened[0]) / pre.numel() < 0.7


def test_torch_backend_has_the_gradients_of_the_dense_product() -> None:
    x, W, b = (tensor.double().requires_grad_() for tensor in (_data(1, 7, 5), _data(2, 11, 5), _data(3, 11)))
    values, latents, start = encode_above(x, W, b, torch.tensor(0.3), backend="torch")
    assert torch.autograd.gradcheck(lambda x, W, b: encode_above(x, W, b, torch.tensor(0.3), backend="torch")[0], (x, W, b))
    row = torch.repeat_interleave(torch.arange(7), start.diff())
    assert torch.equal(values, _dense(x, W, b)[row, latents])
