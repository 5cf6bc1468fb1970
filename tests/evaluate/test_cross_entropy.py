"""Cross-entropy recovered, against plain hooks on the Hugging Face model and against sae_lens.evals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from saekit.errors import ConfigError, CorpusError, StoreMismatch
from saekit.evaluate.dictionary.cross_entropy import BASELINES, baseline_of, ce_recovered
from saekit.lm import LanguageModel
from saekit.lm.run import next_token as predictions
from saekit.names.site import Site
from saekit.names.site_map import SiteMap
from saekit.sae import SAE, SAEConfig
from saekit.sae.metrics import reconstruction

STORIES = ["Once upon a time, there was a little girl named Lily.", "Tom had a red ball. He", "The sun was big and"]
SITE = Site("resid_post", 2)


def _data(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _sae(D: int, F: int = 256) -> SAE:
    cfg = SAEConfig("topk", d_in=D, n_latents=F, k=5, site_map=SITE)
    return SAE(cfg, {name: 0.4 * _data(i, *shape) for i, (name, shape) in enumerate(cfg.shapes().items())})


class _Batch(NamedTuple):
    tokens_BT: Tensor
    mask_BT: Tensor


def _batch(lm: LanguageModel) -> _Batch:
    return _Batch(*lm.encode(STORIES, pad_side="right"))


def _hooked_log_p(lm: LanguageModel, row: Tensor, change: Any) -> Tensor:
    """(T, V) log-probabilities of one sequence without pads, with `change` applied to the block's output (T, D) by a hook."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        new = change(hidden[0])[None]
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = lm.blocks[SITE.layer].register_forward_hook(hook)
    try:
        with torch.no_grad():
            return lm.model(row[None]).logits[0].double().log_softmax(-1)
    finally:
        handle.remove()


def _after_bos(change: Any) -> Any:
    return lambda h: torch.cat([h[:1], change(h[1:])])


@pytest.mark.parametrize("baseline", BASELINES)
def test_it_is_that_of_a_plain_hook_row_by_row(stories_lm: LanguageModel, baseline: Any) -> None:
    lm = stories_lm
    sae = _sae(lm.d_model)
    batch = _batch(lm)
    found = ce_recovered(lm, sae, SITE, [batch], baseline=baseline)

    rows = [tokens[mask.bool()] for tokens, mask in zip(*batch)]
    acts = torch.cat([lm.run(row[None], read=[SITE], logits=None)[SITE][0, 1:] for row in rows])
    ablate = {
        "zero": torch.zeros_like,
        "zero-ordinary": _after_bos(torch.zeros_like),
        "mean": _after_bos(lambda h: acts.mean(0).expand_as(h)),
    }[baseline]
    changes = [lambda h: h, _after_bos(sae), ablate]
    sums, kl = torch.zeros(3, dtype=torch.float64), []
    for row in rows:
        log_p = [_hooked_log_p(lm, row, change)[1:] for change in changes]  # predictions made at BOS do not count
        sums += torch.stack([-each[:-1].gather(1, row[2:, None]).sum() for each in log_p])
        kl.append((log_p[0].exp() * (log_p[0] - log_p[1])).sum(-1))
    n = sum(len(row) - 2 for row in rows)
    ce, spliced, ablated = (sums / n).tolist()
    assert found["n_tokens"] == n
    assert found["ce"] == pytest.approx(ce, abs=1e-4)
    assert found["ce_spliced"] == pytest.approx(spliced, abs=1e-4)
    assert baseline_of(found) == (baseline, pytest.approx(ablated, abs=1e-4))
    assert found["kl"] == pytest.approx(float(torch.cat(kl).mean()), abs=1e-4)
    assert found["ce_recovered"] == pytest.approx((ablated - spliced) / (ablated - ce), abs=1e-4)
    assert found["ce_uniform"] == pytest.approx(math.log(lm.vocab_size))


@pytest.mark.filterwarnings("ignore")
def test_it_equals_that_of_sae_lens(stories_lm: LanguageModel, stories_path: Path, tmp_path: Path) -> None:
    from sae_lens import SAE as LensSAE
    from sae_lens.evals import get_downstream_reconstruction_metrics
    from sae_lens.load_model import load_model
    from sae_lens.training.activation_scaler import ActivationScaler
    from sae_lens.util import get_special_token_ids

    sae = _sae(stories_lm.d_model)
    sae.save(tmp_path)
    model = load_model("AutoModelForCausalLM", str(stories_path), device="cpu")
    theirs = LensSAE.load_from_disk(str(tmp_path))
    theirs.cfg.metadata.hook_name = f"model.layers.{SITE.layer}"
    tokens_BT = torch.tensor([row[:7] for row in stories_lm.text.ids(STORIES)])
    assert tokens_BT.shape[1] > 5

    class Store:
        def get_batch_tokens(self, n: int) -> Tensor:
            return tokens_BT

    expected = get_downstream_reconstruction_metrics(
        theirs,
        model,
        Store(),  # type: ignore[arg-type]
        ActivationScaler(),
        compute_kl=True,
        compute_ce_loss=True,
        n_batches=1,
        eval_batch_size_prompts=len(STORIES),
        ignore_tokens=get_special_token_ids(stories_lm.text.tokenizer),
    )
    found = ce_recovered(stories_lm, sae, SITE, [tokens_BT])
    assert found["ce"] == pytest.approx(expected["ce_loss_without_sae"], rel=1e-4)
    assert found["ce_spliced"] == pytest.approx(expected["ce_loss_with_sae"], rel=1e-4)
    assert found["ce_zero"] == pytest.approx(expected["ce_loss_with_ablation"], rel=1e-4)
    assert found["ce_recovered"] == pytest.approx(expected["ce_loss_score"], abs=1e-4)
    assert found["kl"] == pytest.approx(expected["kl_div_with_sae"], rel=1e-4)


def _identity(D: int, site: Site, scale: float = 1.0) -> SAE:
    """Reconstructs everything: a latent for each coordinate's positive and negative part."""
    eye = torch.eye(D)
    tensors = {"W_enc": torch.cat([eye, -eye], 1), "W_dec": scale * torch.cat([eye, -eye]), "b_enc": torch.zeros(2 * D)}
    return SAE(SAEConfig("standard", d_in=D, n_latents=2 * D, site_map=site), {**tensors, "b_dec": torch.zeros(D)})


@pytest.mark.parametrize("kind", ["resid_post", "heads", "mlp_out"])
def test_a_perfect_dictionary_recovers_all_and_an_empty_one_nothing(stories_lm: LanguageModel, kind: str) -> None:
    lm, site = stories_lm, Site(kind, 2)
    perfect = ce_recovered(lm, _identity(lm.width(site), site), site, [_batch(lm)])
    assert perfect["ce_recovered"] == pytest.approx(1, abs=1e-4)
    assert perfect["kl"] == pytest.approx(0, abs=1e-5)
    tokens_BT = _batch(lm).tokens_BT[:1]
    empty = ce_recovered(lm, _identity(lm.width(site), site, scale=0.0), site, [tokens_BT], baseline="zero-ordinary")
    assert empty["ce_recovered"] == pytest.approx(0, abs=1e-6)
    assert empty["ce_spliced"] == pytest.approx(empty["ce_zero"])
    assert math.isfinite(empty["kl"])


def test_splicing_a_transcoder_writes_where_it_predicts(stories_lm: LanguageModel) -> None:
    lm, site, out = stories_lm, Site("mlp_in", 1), Site("mlp_out", 1)
    cfg = SAEConfig("transcoder", d_in=lm.d_model, d_out=lm.d_model, n_latents=8, site_map=SiteMap((site,), (out,)))
    # Weights of zero: the same as ablating mlp_out.
    found = ce_recovered(lm, SAE(cfg), site, [_batch(lm)], baseline="zero-ordinary")
    assert found["ce_recovered"] == pytest.approx(0, abs=1e-6)
    assert found["ce_spliced"] != pytest.approx(found["ce"], abs=1e-3)


def test_a_transcoder_without_an_output_site_is_refused(stories_lm: LanguageModel) -> None:
    lm, site = stories_lm, Site("mlp_in", 1)
    sae = SAE(SAEConfig("transcoder", d_in=lm.d_model, d_out=lm.d_model, n_latents=8, site_map=site))
    with pytest.raises(StoreMismatch, match="where it writes is unknown"):
        ce_recovered(lm, sae, site, [_batch(lm)])
    with pytest.raises(StoreMismatch, match="where it writes is unknown"):
        reconstruction(sae, [{site: _data(0, 5, lm.d_model)}])


def test_few_logits_at_a_time_give_the_same(stories_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sae = _sae(stories_lm.d_model)
    expected = ce_recovered(stories_lm, sae, SITE, [_batch(stories_lm)])
    monkeypatch.setattr(predictions, "_NUMBERS", 3 * stories_lm.vocab_size)
    found = ce_recovered(stories_lm, sae, SITE, [_batch(stories_lm)])
    assert found.pop("baseline") == expected.pop("baseline")
    assert found == pytest.approx(expected, rel=1e-5)


def test_no_token_to_predict_is_an_error(stories_lm: LanguageModel) -> None:
    with pytest.raises(CorpusError):
        ce_recovered(stories_lm, _identity(stories_lm.d_model, SITE), SITE, [torch.tensor([[1]])])


def test_an_unknown_baseline_is_refused(stories_lm: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="zero-ordinary"):
        ce_recovered(stories_lm, _identity(stories_lm.d_model, SITE), SITE, [_batch(stories_lm)], baseline="median")  # type: ignore[arg-type]


def test_results_of_before_baselines_had_names_are_of_zeros_at_ordinary_tokens() -> None:
    assert baseline_of({"ce": 1.0, "ce_zero": 9.0}) == ("zero-ordinary", 9.0)
