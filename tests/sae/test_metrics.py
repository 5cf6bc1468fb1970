"""Metrics against recomputation in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saekit.errors import CorpusError
from saekit.names.site import Site
from saekit.sae import SAE, SAEConfig
from saekit.sae.code import Code, SparseCode
from saekit.sae.metrics import QUANTILES, Firings, Reconstruction, reconstruction
from tests.kit.saes import placed


def _data(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _sae(architecture: str, D: int = 12, F: int = 40, site: Site | None = None, **settings: Any) -> SAE:
    cfg = SAEConfig(
        architecture, d_in=D, n_latents=F, k=5 if architecture.endswith("topk") else None, **placed({"site": site, **settings})
    )
    return SAE(cfg, {name: 0.4 * _data(i, *shape) for i, (name, shape) in enumerate(cfg.shapes().items())})


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_reconstruction_is_that_of_all_tokens_at_once(architecture: str) -> None:
    sae, site = _sae(architecture, site=Site("resid_post", 1)), Site("resid_post", 1)
    x = _data(9, 501, 12) + 100  # a large mean, for which naive moments lose precision
    sae.W_enc[:, :7] = 0
    sae.get_parameter("b_enc")[:7] = -1  # these never fire
    found = reconstruction(sae, [{site: part} for part in x.split(64)])
    code = sae.encode_dense(x)
    error = (sae(x).double() - x.double()).square().sum()
    assert found["fvu"] == pytest.approx(float(error / (x.double() - x.double().mean(0)).square().sum()), rel=1e-6)
    assert found["l0"] == pytest.approx(float((code > 0).sum(1).double().mean()))
    assert found["dead_fraction"] == pytest.approx(float((~(code > 0).any(0)).double().mean()))
    assert found["dead_fraction"] >= 7 / 40
    assert found["n_tokens"] == 501
    again = reconstruction(sae, x.split(100))
    # The first batch sets the ranges of norms.
    assert again.pop("fvu_trimmed") == pytest.approx(found.pop("fvu_trimmed"), rel=0.01)
    assert again == pytest.approx(found)


X, Y = Site("mlp_in", 1), Site("mlp_out", 1)
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("topk", {}),
    ("abstopk", {}),
    ("standard", {}),
    ("gated", {}),
    ("jumprelu", {}),
    ("standard", {"normalize_activations": "layer_norm"}),
    ("transcoder", {"d_out": 9, "site_out": Y}),
    ("skip_transcoder", {"d_out": 9, "site_out": Y}),
]


@pytest.mark.parametrize(("architecture", "extra"), KINDS)
def test_every_metric_equals_its_definition_on_all_tokens_at_once(architecture: str, extra: dict[str, Any]) -> None:
    sae = _sae(architecture, site=X, **extra)
    x = _data(3, 700, 12) * (1 + 3 * torch.rand(700, 1, generator=torch.Generator().manual_seed(4))) + 2
    y = _data(5, 700, 9) + x[:, :9] if sae.cfg.transcodes else x
    batches = [{X: a, Y: b} for a, b in zip(x.split(300), y.split(300))]
    found = Reconstruction.of(sae, batches)

    code, target = sae.encode_dense(x), y.double()
    given = sae(x).double()
    silent = sae.decode(torch.zeros_like(code), x).double()
    errors, spreads = (given - target).square().sum(1), (target - target.mean(0)).square().sum(1)
    u, v = given - silent, target - silent
    below = target.norm(dim=1) <= target[:300].norm(dim=1).quantile(0.99)
    trimmed = errors[below].sum() / (target[below] - target[below].mean(0)).square().sum()
    best = torch.linalg.lstsq(u.reshape(-1, 1), v.reshape(-1, 1)).solution.item()  # the multiple of u that is nearest to v
    fires = code != 0
    assert found.scalars() == pytest.approx(
        {
            "fvu": float(errors.sum() / spreads.sum()),
            "fvu_trimmed": float(trimmed),
            "cosine": float(torch.nn.functional.cosine_similarity(given, target).mean()),
            "shrinkage": 1 / best,
            "l0": float(fires.sum() / 700),
            "dead_fraction": float((fires.sum(0) == 0).double().mean()),
            "dense_fraction": float((fires.double().mean(0) > 0.1).double().mean()),
            "n_tokens": 700,
        },
        rel=1e-5,
    )
    assert [*found.firings.l0_quantiles().values()] == np.quantile(
        fires.sum(1).numpy(), QUANTILES, method="inverted_cdf"
    ).tolist()
    histogram = found.firings.histogram()
    logs = np.log10(fires.double().mean(0)[fires.any(0)].numpy())
    assert histogram["counts"] == np.histogram(logs, histogram["edges"])[0].tolist()
    assert sum(histogram["counts"]) == len(logs)
    assert histogram["counts"][0] > 0
    assert histogram["edges"][-1] == 0

    edges = target[:300].norm(dim=1).quantile(torch.tensor(QUANTILES, dtype=torch.float64))
    place = torch.bucketize(target.norm(dim=1), edges)
    rows = found.fvu_by_norm()
    assert sum(row["tokens"] for row in rows) == 700
    for row in rows:
        inside = place == [0.0, *QUANTILES].index(row["from"])
        assert row["tokens"] == int(inside.sum())
        assert row["norm"] == pytest.approx(float(target.norm(dim=1)[inside].mean()))
        assert row["fvu"] == pytest.approx(float(errors[inside].sum() / spreads[inside].sum()), rel=1e-5)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.sampled_from(["topk", "standard"]))
def test_the_division_into_batches_changes_nothing(sizes: list[int], architecture: str) -> None:
    sae, x = _sae(architecture), _data(8, sum(sizes), 12)
    whole, parts = Reconstruction.of(sae, [x]), Reconstruction.of(sae, x.split(sizes))
    ranged = {"fvu_trimmed"}  # in ranges that the first batch sets
    expected = {name: value for name, value in whole.scalars().items() if name not in ranged}
    assert {name: parts.scalars()[name] for name in expected} == pytest.approx(expected, rel=1e-4, nan_ok=True)
    assert parts.firings.histogram() == whole.firings.histogram()
    assert torch.equal(parts.firings.tokens_L, whole.firings.tokens_L)
    assert sum(row["tokens"] for row in parts.fvu_by_norm()) == len(x)


def test_memory_does_not_grow_with_the_tokens() -> None:
    sae = _sae("topk")

    def kept(n: int) -> int:
        found = Reconstruction.of(sae, (_data(i, 10, 12) for i in range(n)))
        tensors = [*vars(found).values(), *vars(found.firings).values()]
        return sum(each.numel() for each in tensors if isinstance(each, Tensor))

    assert kept(1) == kept(50) > 0


@pytest.mark.parametrize("gamma", [0.6, 1.0, 1.4])
@pytest.mark.parametrize("mean", [0.0, 50.0])
def test_planted_shrinkage_is_found_whatever_the_mean(gamma: float, mean: float) -> None:
    """Data are sums of three latents plus b_dec. The output of the dictionary is too large or too small by a known factor."""
    D, F = 16, 30
    directions_FD = torch.nn.functional.normalize(_data(0, F, D), dim=1)
    true_BF = torch.zeros(500, F)
    true_BF[torch.arange(500)[:, None], torch.rand(500, F, generator=torch.Generator().manual_seed(1)).topk(3).indices] = 2.0
    b_dec = torch.full((D,), mean)
    x = true_BF @ directions_FD + b_dec

    class Known(SAE):
        def encode_sparse(self, x_BD: Tensor) -> SparseCode:
            return SparseCode.of_rows(Code.of_dense(gamma * true_BF))

    sae = Known(SAEConfig("standard", d_in=D, n_latents=F))
    sae.W_dec[:], sae.b_dec[:] = directions_FD, b_dec
    found = reconstruction(sae, [x])
    assert found["shrinkage"] == pytest.approx(gamma, rel=1e-5)
    assert found["l0"] == 3
    assert found["cosine"] > 0.999


def test_planted_densities() -> None:
    """Latent i fires on a known share of the tokens; one latent never fires."""
    shares = [0, 1, 5, 100, 101, 500, 1000]
    code = torch.stack([(torch.arange(1000) < share).float() for share in shares], 1)
    firings = Firings(_sae("standard", F=len(shares)))
    for part in code.split(300):
        firings.add(SparseCode.of_rows(Code.of_dense(part)))
    assert firings.density_F.tolist() == [share / 1000 for share in shares]
    assert firings.dead_fraction == pytest.approx(1 / 7)
    assert firings.dense_fraction == pytest.approx(3 / 7)  # a latent at exactly 10 % is not dense
    histogram = dict(zip(firings.histogram()["edges"], firings.histogram()["counts"]))
    assert {edge: count for edge, count in histogram.items() if count} == {-3.0: 1, -2.5: 1, -1.0: 2, -0.5: 1, -0.25: 1}


def test_a_few_huge_tokens_do_not_hide_the_others() -> None:
    """A dictionary with one direction, and data with one huge token in a hundred along it."""
    D = 8
    x = _data(2, 1000, D)
    x[::100] = 0
    x[::100, 0] = 1000.0
    cfg = SAEConfig("standard", d_in=D, n_latents=1)
    eye = torch.eye(D)
    sae = SAE(cfg, {"W_enc": eye[:, :1], "W_dec": eye[:1], "b_enc": torch.zeros(1), "b_dec": torch.zeros(D)})
    found = Reconstruction.of(sae, x.split(250))
    assert found.scalars()["fvu"] < 1e-3
    *ordinary, largest = found.fvu_by_norm()
    assert largest["norm"] == 1000
    assert largest["fvu"] == 0
    assert all(row["fvu"] > 0.01 for row in ordinary if row["to"] < 0.99)


def test_firings_alone_equal_those_of_a_reconstruction() -> None:
    sae, x = _sae("topk"), _data(0, 200, 12)
    firings = Firings.of(sae, x.split(64))
    assert torch.equal(firings.tokens_F, Reconstruction.of(sae, [x]).firings.tokens_F)
    with pytest.raises(CorpusError):
        Firings.of(sae, [])


def test_reconstruction_of_nothing_is_an_error() -> None:
    with pytest.raises(CorpusError):
        reconstruction(_sae("topk"), [])
