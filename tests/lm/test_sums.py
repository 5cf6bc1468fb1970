"""Which sum a tensor is, and with which factors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saekit.lm.layout.sums import Sums

GENERATOR = torch.Generator().manual_seed(0)


def noise(scale: float = 1.0) -> Tensor:
    return scale * torch.randn(12, 32, generator=GENERATOR)


def test_factors_are_found() -> None:
    pre, attn, mlp = noise(), noise(), noise()
    sums = Sums(0.5 * pre + 0.22 * attn + 3 * mlp, {"pre": pre, "attn": attn, "mlp": mlp, "other": noise()})
    assert sums.fit(["pre", "attn", "mlp"]) == pytest.approx([0.5, 0.22, 3], rel=1e-5)
    assert sums.fit(["pre", "attn"]) is None and sums.fit(["pre", "attn", "other"]) is None
    assert sums.first("pre", [["other", "attn", ""], ["mlp", ""]])[0] == ["attn", "mlp"]


def test_a_few_large_coordinates_do_not_hide_the_others() -> None:
    pre, attn = noise(), noise()
    pre[:, 3] *= 1e4
    assert Sums(pre + attn, {"pre": pre, "attn": attn}).fit(["pre", "attn"]) == [1.0, 1.0]
    assert Sums(pre + attn, {"pre": pre, "attn": noise()}).fit(["pre", "attn"]) is None


def test_factors_of_single_coordinates() -> None:
    pre, attn, gate = noise(), noise(), torch.linspace(0.5, 2, 32)
    sums = Sums(gate * pre + attn, {"pre": pre, "attn": attn})
    assert sums.fit(["pre", "attn"]) is None
    factors = sums.fit_by_channel(["pre", "attn"])
    torch.testing.assert_close(factors[0], gate)
    assert factors[1] == 1.0


def test_a_constant() -> None:
    pre, attn, bias = noise(), noise(), torch.randn(32, generator=GENERATOR)
    terms = {"pre": pre, "attn": attn}
    assert Sums(pre + attn + bias, terms).fit(["pre", "attn"]) is None
    assert Sums(pre + attn + bias, terms, constant=True).fit(["pre", "attn"]) == pytest.approx([1.0, 1.0])


def test_a_sum_without_factors_goes_before_one_with_factors() -> None:
    """The norm of tiny vectors is nearly a factor."""
    pre, tiny = noise(), noise(1e-5)
    normed = tiny * torch.rsqrt(tiny.square().mean(-1, keepdim=True) + 1e-5)
    found = Sums(pre + normed, {"pre": pre, "mlp": tiny, "norm": normed}).first("pre", [["mlp", "norm", ""]])
    assert found == (["norm"], [1.0, 1.0])


def test_half_precision() -> None:
    pre, attn, mlp = (noise().to(torch.bfloat16) for _ in range(3))
    sums = Sums((pre + 0.22 * attn) + 0.22 * mlp, {"pre": pre, "attn": attn, "mlp": mlp})
    assert [float(scale) for scale in sums.fit(["pre", "attn", "mlp"])] == pytest.approx([1, 0.22, 0.22], rel=2e-2)
    assert sums.fit(["pre", "attn"]) is None
