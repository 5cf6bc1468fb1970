"""A dictionary on other models: the same, a slightly changed one, a very different one, and models of other sizes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from saekit.activations import Corpus, LiveActivations
from saekit.errors import StoreMismatch, UnknownSite
from saekit.evaluate.dictionary.cross_entropy import ce_recovered
from saekit.evaluate.dictionary.transfer import Transfer, transfer
from saekit.lm import LanguageModel, Site
from saekit.sae import SAE, SAEConfig
from saekit.sae.metrics import reconstruction

SITE = Site("resid_post", 2)
TEXTS = ["Once upon a time, there was a little girl named Lily. She liked to play.", "Tom had a red ball.", "The sun was big"] * 3


@pytest.fixture(scope="module")
def sae(stories_lm: LanguageModel) -> SAE:
    """A dictionary of the principal directions of the model's activations, except the last few, with a latent for each sign."""
    x = next(iter(LiveActivations(stories_lm, [SITE], Corpus.open(TEXTS), batch_size=10**4, split="all", epochs=1)))[SITE]
    mean = x.mean(0)
    directions = torch.linalg.svd(x - mean).Vh[:40]
    cfg = SAEConfig("standard", d_in=64, n_latents=80, site_map=SITE)
    both = torch.cat([directions, -directions])
    return SAE(cfg, {"W_enc": both.T, "W_dec": both, "b_enc": torch.zeros(80), "b_dec": mean})


def _changed(lm: LanguageModel, noise: float) -> LanguageModel:
    """A sibling model: noise is added to every weight, relative to its size."""
    model = copy.deepcopy(lm.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += noise * weight.std() * torch.randn(weight.shape, generator=generator)
    return LanguageModel.attach(model, lm.tokenizer, name="sibling")


def test_on_the_model_itself_nothing_is_lost(stories_lm: LanguageModel, sae: SAE) -> None:
    rows = stories_lm.text.ids(TEXTS)
    found = transfer(sae, stories_lm, stories_lm, SITE, rows, progress=False)
    assert found.own == found.there
    assert found.verdict == "transfers"
    x = torch.cat([stories_lm.run([row], read=[SITE], logits=None)[SITE][0, 1:] for row in rows])
    expected = reconstruction(sae, [x])
    assert found.own["tokens"] == expected.pop("n_tokens") == len(x)
    assert {name: found.own[name] for name in expected} == pytest.approx(expected, rel=1e-3)
    spliced = ce_recovered(stories_lm, sae, SITE, [torch.tensor([row]) for row in rows])
    del spliced["n_tokens"], spliced["baseline"]
    assert {name: found.own[name] for name in spliced} == pytest.approx(spliced, rel=1e-3)


def test_it_transfers_to_a_sibling_and_not_to_a_stranger(stories_lm: LanguageModel, sae: SAE) -> None:
    rows = stories_lm.text.ids(TEXTS)
    sibling = transfer(sae, stories_lm, _changed(stories_lm, 0.01), SITE, rows, progress=False)
    assert sibling.verdict == "transfers"
    assert sibling.own["fvu"] < sibling.there["fvu"] < sibling.own["fvu"] + 0.05
    stranger = transfer(sae, stories_lm, _changed(stories_lm, 3.0), SITE, rows, progress=False)
    assert stranger.verdict == "does not transfer"
    assert stranger.to_dict()["verdict"] == "does not transfer"
    assert stranger.to_dict()["other"] == "sibling"


@pytest.mark.parametrize(
    ("recovered", "fvu", "verdict"),
    [
        (0.95, 0.1, "transfers"),
        (0.88, 0.1, "transfers in part"),
        (0.94, 0.4, "transfers in part"),
        (0.4, 0.1, "does not transfer"),
        (float("nan"), 0.1, "does not transfer"),
    ],
)
def test_verdicts(recovered: float, fvu: float, verdict: str) -> None:
    own = {"ce": 2.0, "ce_zero": 9.0, "ce_recovered": 0.96, "fvu": 0.05}
    there = own | {"ce_recovered": recovered, "fvu": fvu}
    assert Transfer("a", "b", own, there).verdict == verdict
    assert Transfer("a", "b", own, there | {"ce_zero": 1.0}).verdict == "does not transfer"


def test_another_tokenizer_gets_the_text(stories_lm: LanguageModel, sae: SAE, stories_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(stories_path)
    tokenizer.add_tokens(["girl named"])  # an ordinary one, which the base model's tokenizer has in two
    model = copy.deepcopy(stories_lm.model)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    other = LanguageModel.attach(model, tokenizer, name="other")
    found = transfer(sae, stories_lm, other, SITE, stories_lm.text.ids(TEXTS), progress=False)
    expected = transfer(sae, other, other, SITE, other.text.ids(TEXTS), progress=False)
    assert found.there == pytest.approx(expected.own)
    assert found.there["tokens"] < found.own["tokens"]


def test_models_of_other_sizes_are_refused(stories_lm: LanguageModel, sae: SAE) -> None:
    def model(width: int, layers: int) -> LanguageModel:
        config = LlamaConfig(
            vocab_size=512, hidden_size=width, num_hidden_layers=layers, intermediate_size=32, num_attention_heads=4
        )
        return LanguageModel.attach(LlamaForCausalLM(config), stories_lm.tokenizer, name="small")

    rows = stories_lm.text.ids(TEXTS)
    with pytest.raises(StoreMismatch, match=r"is 64 wide, but resid_post.2 of small is 32"):
        transfer(sae, stories_lm, model(32, 4), SITE, rows)
    with pytest.raises(UnknownSite, match="no layer 2"):
        transfer(sae, stories_lm, model(64, 2), SITE, rows)
