"""Metrics against recomputation in float64, and splicing against a hook of our own on the Hugging Face model."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from saekit.errors import CorpusError, StoreMismatch
from saekit.lm import LanguageModel, predictions
from saekit.lm.sites import Site
from saekit.sae import SAE, SAEConfig
from trainers.metrics import ce_recovered, reconstruction

STORIES = ["Once upon a time, there was a little girl named Lily.", "Tom had a red ball. He", "The sun was big and"]


def _data(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _sae(architecture: str, D: int = 12, F: int = 40, site: Site | None = None) -> SAE:
    cfg = SAEConfig(architecture, d_in=D, n_latents=F, k=5 if architecture == "topk" else None, site=site)
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
