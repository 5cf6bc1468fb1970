"""Metrics against recomputation in float64, and splicing against a hook of our own on the Hugging Face model."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saekit.errors import CorpusError, StoreMismatch
from saekit.lm import LanguageModel, predictions
from saekit.lm.sites import Site
from saekit.sae import SAE, SAEConfig
from trainers.metrics import QUANTILES, Firings, Reconstruction, ce_recovered, reconstruction

STORIES = ["Once upon a time, there was a little girl named Lily.", "Tom had a red ball. He", "The sun was big and"]


def _data(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _sae(architecture: str, D: int = 12, F: int = 40, site: Site | None = None, **settings: Any) -> SAE:
    cfg = SAEConfig(architecture, d_in=D, n_latents=F, k=5 if architecture.endswith("topk") else None, site=site, **settings)
    return SAE(cfg, {name: 0.4 * _data(i, *shape) for i, (name, shape) in enumerate(cfg.shapes().items())})


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_reconstruction_is_that_of_all_tokens_at_once(architecture: str) -> None:
    sae, site = _sae(architecture, site=Site("resid_post", 1)), Site("resid_post", 1)
    x = _data(9, 501, 12) + 100  # far from 0, where naive moments lose their digits
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
    assert reconstruction(sae, x.split(100)) == pytest.approx(found)


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
    best = torch.linalg.lstsq(u.reshape(-1, 1), v.reshape(-1, 1)).solution.item()  # the multiple of u that is nearest to v
    fires = code != 0
    assert found.scalars() == pytest.approx(
        {
            "fvu": float(errors.sum() / spreads.sum()),
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
def test_how_tokens_come_in_batches_changes_nothing(sizes: list[int], architecture: str) -> None:
    sae, x = _sae(architecture), _data(8, sum(sizes), 12)
    whole, parts = Reconstruction.of(sae, [x]), Reconstruction.of(sae, x.split(sizes))
    assert parts.scalars() == pytest.approx(whole.scalars(), rel=1e-4, nan_ok=True)
    assert parts.firings.histogram() == whole.firings.histogram()
    assert torch.equal(parts.firings.tokens_L, whole.firings.tokens_L)
    assert sum(row["tokens"] for row in parts.fvu_by_norm()) == len(x)


def test_what_is_kept_does_not_grow_with_the_tokens() -> None:
    sae = _sae("topk")

    def kept(n: int) -> int:
        found = Reconstruction.of(sae, (_data(i, 10, 12) for i in range(n)))
        tensors = [*vars(found).values(), *vars(found.firings).values()]
        return sum(each.numel() for each in tensors if isinstance(each, Tensor))

    assert kept(1) == kept(50) > 0


@pytest.mark.parametrize("gamma", [0.6, 1.0, 1.4])
@pytest.mark.parametrize("mean", [0.0, 50.0])
def test_planted_shrinkage_is_found_whatever_the_mean(gamma: float, mean: float) -> None:
    """Data of three latents on b_dec; the dictionary has all of it right but the size of what it writes."""
    D, F = 16, 30
    directions_FD = torch.nn.functional.normalize(_data(0, F, D), dim=1)
    true_BF = torch.zeros(500, F)
    true_BF[torch.arange(500)[:, None], torch.rand(500, F, generator=torch.Generator().manual_seed(1)).topk(3).indices] = 2.0
    b_dec = torch.full((D,), mean)
    x = true_BF @ directions_FD + b_dec

    class Known(SAE):
        def encode(self, x_BD: Tensor) -> Tensor:
            return gamma * true_BF

    sae = Known(SAEConfig("standard", d_in=D, n_latents=F))
    sae.W_dec[:], sae.b_dec[:] = directions_FD, b_dec
    found = reconstruction(sae, [x])
    assert found["shrinkage"] == pytest.approx(gamma, rel=1e-5)
    assert found["l0"] == 3
    assert found["cosine"] > 0.999


def test_planted_densities() -> None:
    """Latent i fires on a share of the tokens that is known; one never."""
    shares = [0, 1, 5, 100, 101, 500, 1000]
    code = torch.stack([(torch.arange(1000) < share).float() for share in shares], 1)
    firings = Firings(_sae("standard", F=len(shares)))
    for part in code.split(300):
        firings.add(part)
    assert firings.density_F.tolist() == [share / 1000 for share in shares]
    assert firings.dead_fraction == pytest.approx(1 / 7)
    assert firings.dense_fraction == pytest.approx(3 / 7)  # 10 % itself is not dense
    histogram = dict(zip(firings.histogram()["edges"], firings.histogram()["counts"]))
    assert {edge: count for edge, count in histogram.items() if count} == {-3.0: 1, -2.5: 1, -1.0: 2, -0.5: 1, -0.25: 1}


def test_a_few_huge_tokens_do_not_hide_the_others() -> None:
    """A dictionary that knows one direction, along which one token in a hundred is huge."""
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


class _Batch(NamedTuple):
    tokens_BT: Tensor
    mask_BT: Tensor


def _batch(lm: LanguageModel) -> _Batch:
    return _Batch(*lm.encode(STORIES, pad_side="right"))


def _hooked_logits(lm: LanguageModel, row: Tensor, layer: int, change: Any) -> Tensor:
    """Logits of one unpadded sequence with the block's output changed everywhere but at BOS, by a plain torch hook."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        new = hidden.clone()
        new[:, 1:] = change(hidden[:, 1:])
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = lm.blocks[layer].register_forward_hook(hook)
    try:
        with torch.no_grad():
            return lm.model(row[None]).logits[0]
    finally:
        handle.remove()


@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_cross_entropy_recovered_is_that_of_a_plain_hook_row_by_row(stories_lm: LanguageModel, baseline: Any) -> None:
    lm, site = stories_lm, Site("resid_post", 2)
    sae = _sae("topk", D=lm.d_model, F=256, site=site)
    batch = _batch(lm)
    found = ce_recovered(lm, sae, site, [batch], baseline=baseline)

    rows = [tokens[mask.bool()] for tokens, mask in zip(*batch)]
    acts = torch.cat([lm.run(row[None], read=[site], logits=None)[site][0, 1:] for row in rows])
    ablation = acts.mean(0) if baseline == "mean" else torch.zeros(lm.d_model)
    changes = [lambda h: h, lambda h: sae(h), lambda h: ablation.expand_as(h)]
    sums, n = torch.zeros(4, dtype=torch.float64), 0
    for row in rows:
        log_p = [_hooked_logits(lm, row, 2, change).double().log_softmax(-1)[:-1] for change in changes]
        sums[:3] += torch.stack([-lp.gather(1, row[1:, None]).sum() for lp in log_p])
        sums[3] += (log_p[0].exp() * (log_p[0] - log_p[1])).sum()
        n += len(row) - 1
    ce, spliced, ablated, kl = (sums / n).tolist()
    assert found["n_tokens"] == n
    assert found["ce"] == pytest.approx(ce, abs=1e-4)
    assert found["ce_spliced"] == pytest.approx(spliced, abs=1e-4)
    assert found[f"ce_{baseline}"] == pytest.approx(ablated, abs=1e-4)
    assert found["kl"] == pytest.approx(kl, abs=1e-4)
    assert found["ce_recovered"] == pytest.approx((ablated - spliced) / (ablated - ce), abs=1e-4)


def _identity(D: int, site: Site, scale: float = 1.0) -> SAE:
    """Reconstructs everything: a latent for each coordinate's positive and negative part."""
    eye = torch.eye(D)
    tensors = {"W_enc": torch.cat([eye, -eye], 1), "W_dec": scale * torch.cat([eye, -eye]), "b_enc": torch.zeros(2 * D)}
    return SAE(SAEConfig("standard", d_in=D, n_latents=2 * D, site=site), {**tensors, "b_dec": torch.zeros(D)})


@pytest.mark.parametrize("kind", ["resid_post", "heads", "mlp_out"])
def test_a_perfect_dictionary_recovers_all_and_an_empty_one_nothing(stories_lm: LanguageModel, kind: str) -> None:
    lm, site = stories_lm, Site(kind, 2)
    perfect = ce_recovered(lm, _identity(lm.width(site), site), site, [_batch(lm)])
    assert perfect["ce_recovered"] == pytest.approx(1, abs=1e-4)
    assert perfect["kl"] == pytest.approx(0, abs=1e-5)
    empty = ce_recovered(lm, _identity(lm.width(site), site, scale=0.0), site, [_batch(lm).tokens_BT[:1]])
    assert empty["ce_recovered"] == pytest.approx(0, abs=1e-6)
    assert empty["ce_spliced"] == pytest.approx(empty["ce_zero"])
    assert math.isfinite(empty["kl"])


def test_splicing_a_transcoder_writes_where_it_predicts(stories_lm: LanguageModel) -> None:
    lm, site, out = stories_lm, Site("mlp_in", 1), Site("mlp_out", 1)
    cfg = SAEConfig("transcoder", d_in=lm.d_model, d_out=lm.d_model, n_latents=8, site=site, site_out=out)
    found = ce_recovered(lm, SAE(cfg), site, [_batch(lm)])  # all zeros: the same as ablating mlp_out
    assert found["ce_recovered"] == pytest.approx(0, abs=1e-6)
    assert found["ce_spliced"] != pytest.approx(found["ce"], abs=1e-3)


def test_a_transcoder_that_writes_nobody_knows_where_is_not_measured(stories_lm: LanguageModel) -> None:
    lm, site = stories_lm, Site("mlp_in", 1)
    sae = SAE(SAEConfig("transcoder", d_in=lm.d_model, d_out=lm.d_model, n_latents=8, site=site))
    with pytest.raises(StoreMismatch, match="where it writes is unknown"):
        ce_recovered(lm, sae, site, [_batch(lm)])
    with pytest.raises(StoreMismatch, match="where it writes is unknown"):
        reconstruction(sae, [{site: _data(0, 5, lm.d_model)}])


def test_few_logits_at_a_time_give_the_same(stories_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site("resid_post", 2)
    sae = _sae("topk", D=stories_lm.d_model, F=256, site=site)
    expected = ce_recovered(stories_lm, sae, site, [_batch(stories_lm)])
    monkeypatch.setattr(predictions, "_NUMBERS", 3 * stories_lm.vocab_size)
    assert ce_recovered(stories_lm, sae, site, [_batch(stories_lm)]) == pytest.approx(expected, rel=1e-5)


def test_no_token_to_predict_is_an_error(stories_lm: LanguageModel) -> None:
    site = Site("resid_post", 0)
    with pytest.raises(CorpusError):
        ce_recovered(stories_lm, _identity(stories_lm.d_model, site), site, [torch.tensor([[1]])])
