"""BatchTopK and Matryoshka: losses and gradients against dense float64, the search for the top entries, the threshold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saekit.sae.code import Code
from saekit.sae.kernels import encode_above
from tests.kit import dense
from trainers.loop.data_scaling import DataScaling
from trainers.objectives.base import Now, objective
from trainers.objectives.batch_threshold import RunningThreshold, largest_of_batch
from trainers.objectives.matryoshka import group_ends

NO_DEAD = torch.arange(0)


@pytest.mark.parametrize("arch", ["batchtopk", "matryoshka"])
@pytest.mark.parametrize("path", dense.PATHS)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_gradients_are_those_of_dense_float64(arch: str, path: str, data: st.DataObject) -> None:
    B, D, F = data.draw(st.integers(2, 70)), data.draw(st.integers(2, 40)), data.draw(st.integers(2, 150))
    k, aux_k, seed = data.draw(st.integers(1, F)), data.draw(st.integers(1, F)), data.draw(st.integers(0, 10**6))
    dead = torch.randperm(F, generator=torch.Generator().manual_seed(seed))[: data.draw(st.integers(0, F))].sort().values
    coefficient = data.draw(st.sampled_from([0.0, 1 / 32, 2.0]))
    config = dense.config(F, D, k, arch, aux_k=aux_k, aux_coefficient=coefficient, groups=data.draw(GROUPS))
    p = dense.random_parameters(F, D, seed)
    x = dense.clear(config, p, dense.data(seed + 1, B, D), dead)
    guess = torch.tensor(data.draw(st.sampled_from([-1.0, 0.0, 0.5, 3.0])))
    dense.check(path, config, p, x, dead, state={"threshold_last": guess})


GROUPS = st.sampled_from([(1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32), (0.5, 0.5), (1.0,), (0.9, 0.05, 0.05)])


@pytest.mark.parametrize("arch", ["batchtopk", "matryoshka"])
@pytest.mark.parametrize("path", dense.PATHS)
def test_a_usual_size(arch: str, path: str) -> None:
    F, D, k, dead = 600, 32, 8, torch.arange(100, 160)
    p = dense.random_parameters(F, D)
    p.b_enc_F[dead] -= 2.0
    config = dense.config(F, D, k, arch, aux_k=16)
    x = dense.clear(config, p, dense.data(1, 500, D), dead)
    gradient = dense.check(path, config, p, x, dead, state={"threshold_last": torch.tensor(1.3)})
    assert gradient.W_enc_FD[dead].abs().max() > 1e-7


@pytest.mark.parametrize("arch", ["topk", "batchtopk", "matryoshka", "jumprelu", "standard"])
def test_a_crosscoder_starts_at_the_mean_of_the_data(arch: str) -> None:
    """At the mean, all latents start with the same pre-activation: that of the threshold, or 0."""
    site = DataScaling.of(dense.data(3, 400, 24) + 7.0, "mean")
    both = DataScaling.joined([site, site])
    config = dense.config(256, 48, 8, arch)
    p = objective(config, both, both).start()
    pre_F = p.W_enc_FD @ both.centre_D + p.b_enc_F
    torch.testing.assert_close(pre_F - pre_F[0], torch.zeros_like(pre_F), atol=1e-4, rtol=0)


def test_the_search_encodes_only_a_few_times() -> None:
    """If fewer entries are positive than requested, a lower floor finds no more, so the search must stop early."""
    x, W, calls = torch.rand(50, 8), torch.rand(20, 8), 0

    def encode(rows: torch.Tensor, floor: torch.Tensor) -> Code:
        nonlocal calls
        calls += 1
        return Code(*encode_above(rows, W, None, floor.expand(20)))

    code = largest_of_batch(encode, x, 5000, torch.tensor(3.0))
    assert len(code.values_N) == 1000 and calls <= 8


def test_one_group_is_batchtopk() -> None:
    F, D, k = 64, 16, 4
    p, x = dense.random_parameters(F, D), dense.data(1, 100, D)
    now = Now(0.5, torch.arange(9))
    one = dense.ours("sparse", dense.config(F, D, k, "batchtopk"), p, x, x, now, {})
    two = dense.ours("sparse", dense.config(F, D, k, "matryoshka", groups=(1.0,)), p, x, x, now, {})
    assert one[0] == two[0]
    assert all(torch.equal(one[1][name], two[1][name]) for name in p)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 40), st.data(), st.sampled_from(["plain", "ties", "negative", "twice"]))
def test_the_largest_of_a_batch_are_found_from_any_guess(B: int, F: int, data: st.DataObject, kind: str) -> None:
    n = data.draw(st.integers(1, B * F))
    guess = torch.tensor(data.draw(st.sampled_from([-1.0, 0.0, 0.1, 1.0, 50.0])))
    x = dense.data(n, B, F)
    if kind == "ties":
        x = x.round()
    if kind == "negative":
        x = x - 1.5
    if kind == "twice":
        x = torch.cat([x, x])[:B]
    W = torch.eye(F)  # pre-activations equal x
    code = largest_of_batch(lambda x, floor: Code(*encode_above(x, W, None, floor)), x, n, guess)
    expected = x.flatten().sort(descending=True).values[:n]
    expected = expected[expected > 0]
    assert torch.equal(code.values_N.sort(descending=True).values, expected)
    assert torch.equal(code.values_N, x[code.row_N, code.latents_N])
    assert len(set(zip(code.row_N.tolist(), code.latents_N.tolist()))) == len(expected)
    assert len(code) == B


def test_the_threshold_starts_as_its_first_value_and_follows() -> None:
    threshold = RunningThreshold("cpu")
    assert threshold.last == -1

    threshold.observe(torch.tensor(3.0))
    assert threshold.value == 3
    assert threshold.last == 3
    for _ in range(300):
        threshold.observe(torch.tensor(2.0))
    assert threshold.value.item() == pytest.approx(2, abs=1e-3)  # it averages over about a tenth of the past steps


def test_groups_end_at_every_latent_once() -> None:
    assert group_ends((1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32), 1024).tolist() == [32, 96, 224, 480, 1024]
    assert group_ends((1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32), 8).tolist() == [1, 2, 4, 8]
    assert group_ends((0.3, 0.3, 0.4), 1).tolist() == [1]


@pytest.mark.parametrize("arch", ["topk", "batchtopk", "matryoshka"])
def test_k_is_annealed(arch: str) -> None:
    F, D = 60, 12
    config = dense.config(F, D, 3, arch, k_start=20, k_anneal=0.5)
    p, x = dense.random_parameters(F, D), dense.data(2, 40, D) * 3
    for share, k in ((0.0, 20), (0.25, 12), (0.5, 3), (0.9, 3)):  # 11.5 rounds to the even 12
        code = dense.made(config, D).gradient(p, x, x, Now(share, NO_DEAD))[0].code
        assert len(code.values_N) == 40 * (k if arch == "topk" or share != 0.25 else 11.5)


@pytest.mark.parametrize("arch", ["batchtopk", "matryoshka"])
def test_tokens_ten_times_as_large_do_not_blow_up_the_first_step(arch: str) -> None:
    x = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    x[::50] *= 10  # these tokens get most of the latents of the batch
    variance = float(x.square().sum(1).mean())
    it = dense.made(dense.config(1024, 64, 16, arch), 64, variance=variance)
    outcome, _ = it.gradient(it.start(), x, x, Now(0.0, NO_DEAD))
    assert float(outcome.squares) < 3 * len(x) * variance  # the factor is 49 with unit rows
