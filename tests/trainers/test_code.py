"""Ragged codes against their dense matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saekit.sae.code import Code


def _ragged(counts: list[int], F: int, seed: int) -> Code:
    generator = torch.Generator().manual_seed(seed)
    values_N = torch.randn(sum(counts), generator=generator, dtype=torch.float64)
    latents_N = torch.randint(F, (sum(counts),), generator=generator)
    return Code(values_N, latents_N, torch.tensor([0, *counts]).cumsum(0))


def _by_hand(code: Code, F: int) -> Tensor:
    dense_BF = torch.zeros(len(code), F, dtype=torch.float64)
    for row in range(len(code)):
        for n in range(int(code.start_B1[row]), int(code.start_B1[row + 1])):
            dense_BF[row, code.latents_N[n]] += code.values_N[n]
    return dense_BF


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=8), st.integers(1, 12), st.integers(0, 10**6))
def test_a_ragged_code_is_its_matrix(counts: list[int], F: int, seed: int) -> None:
    code, D = _ragged(counts, F, seed), 5
    dense_BF = _by_hand(code, F)
    torch.testing.assert_close(code.dense(F), dense_BF)
    values_BK, latents_BK = code.padded()
    torch.testing.assert_close(Code.of(values_BK, latents_BK).dense(F), dense_BF)
    fires = torch.zeros(F, dtype=torch.int64)
    for value, latent in zip(code.values_N, code.latents_N):
        fires[latent] += value != 0
    assert torch.equal(code.firings(F), fires)
    W_FD, b_D = torch.randn(F, D, dtype=torch.float64), torch.randn(D, dtype=torch.float64)
    torch.testing.assert_close(code.decode(W_FD, b_D), dense_BF @ W_FD + b_D)
    again = Code.of_dense(dense_BF)
    torch.testing.assert_close(again.dense(F), dense_BF)
    assert len(again.latents_N) == int((dense_BF != 0).sum())


def test_rows_of_one_length_are_not_copied() -> None:
    values_BK, latents_BK = torch.randn(4, 3), torch.randint(9, (4, 3))
    code = Code.of(values_BK, latents_BK)
    assert code.values_N.data_ptr() == values_BK.data_ptr()
    assert [tensor.data_ptr() for tensor in code.padded()] == [values_BK.data_ptr(), latents_BK.data_ptr()]


@pytest.mark.parametrize("ragged", [True, False])
def test_decoding_is_differentiable(ragged: bool) -> None:
    code = _ragged([3, 0, 2] if ragged else [2, 2, 2], 7, 0)
    if not ragged:
        code = Code.of(*code.padded())
    values_N, W_FD = code.values_N.clone().requires_grad_(), torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, W: Code(v, code.latents_N, code.start_B1, code.K).decode(W), (values_N, W_FD))
