"""Quality of a dictionary, against its documents run one by one without a store."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from saekit.activations import Corpus, is_heldout, write_store
from saekit.errors import CorpusError
from saekit.evaluate.dictionary.quality import quality
from saekit.lm import LanguageModel, Site
from saekit.sae import SAE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SITE = Site("resid_post", 2)
NAMES = ["Lily", "Tom", "Ben", "Sue", "Max", "Mia", "Tim", "Sam"]
TEXTS = [f"{NAMES[n % 8]} had {n} big red balls. {'They were very happy. ' * (n % 3)}" for n in range(60)]


def by_hand(lm: LanguageModel, sae: SAE, texts: list[str]) -> dict[str, float]:
    """fvu and l0 over all tokens of the texts but BOS, ce of the predictions made at them."""
    rows = lm.text.ids(texts)
    x = torch.cat([lm.run([row], read=[SITE], logits=None)[SITE][0, 1:] for row in rows])
    error, spread = sae(x).double() - x.double(), x.double() - x.double().mean(0)
    with torch.no_grad():
        log_p = [lm.model(torch.tensor([row])).logits[0].log_softmax(-1) for row in rows]
    losses = [-float(each[1:-1].gather(1, torch.tensor(row)[2:, None]).sum()) for each, row in zip(log_p, rows)]
    return {
        "fvu": float(error.square().sum() / spread.square().sum()),
        "l0": float((sae.encode_dense(x) != 0).double().sum(1).mean()),
        "ce": sum(losses) / (len(x) - len(rows)),
        "heldout_tokens": len(x),
    }


def measured(lm: LanguageModel, sae: SAE, texts: list[str], folder: Path) -> dict[str, float]:
    store = write_store(folder, lm, [SITE], Corpus.open(texts), packing="document", progress=False)
    return quality(sae, lm, store, SITE, progress=False)


def test_quality_is_that_of_held_out_documents(
    stories_lm: LanguageModel, make_sae: Callable[..., SAE], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sae = make_sae("topk", 64, 200, k=20, site=SITE)
    heldout = [text for text, out in zip(TEXTS, is_heldout(torch.arange(len(TEXTS)))) if out]
    assert 0 < len(heldout) < len(TEXTS) / 2
    with caplog.at_level(logging.WARNING):
        found = measured(stories_lm, sae, TEXTS, tmp_path / "store")
    expected = by_hand(stories_lm, sae, heldout)
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-3)
    training = by_hand(stories_lm, sae, [text for text in TEXTS if text not in heldout])
    assert found["fvu_train"] == pytest.approx(training["fvu"], rel=1e-3)
    assert found["l0_train"] == pytest.approx(training["l0"], rel=1e-3)
    assert found["baseline"] == "zero"
    assert not caplog.records


def test_a_corpus_too_small_to_hold_any_out_is_measured_whole(
    stories_lm: LanguageModel, make_sae: Callable[..., SAE], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sae, texts = make_sae("topk", 64, 200, k=20, site=SITE), TEXTS[:8]
    assert not is_heldout(torch.arange(8)).any()
    with caplog.at_level(logging.WARNING):
        found = measured(stories_lm, sae, texts, tmp_path / "store")
    expected = by_hand(stories_lm, sae, texts) | {"heldout_tokens": 0}
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-3)
    assert "fvu_train" not in found
    assert "No document" in caplog.text and "held out" in caplog.text


def test_a_corpus_that_is_held_out_whole_has_no_training_figures(
    stories_lm: LanguageModel, make_sae: Callable[..., SAE], tmp_path: Path
) -> None:
    store = write_store(tmp_path, stories_lm, [SITE], Corpus.open(TEXTS[:5]), packing="document", progress=False)
    found = quality(make_sae("topk", 64, 200, k=20, site=SITE), stories_lm, store, SITE, heldout=0.999999, progress=False)
    assert found["heldout_tokens"] > 0 and "fvu_train" not in found


def test_documents_of_one_token_cannot_be_measured(make_sae: Callable[..., SAE], tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    lm = LanguageModel.attach(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=3, n_head=2, vocab_size=3, n_positions=16)), words())
    with pytest.raises(CorpusError, match="no document of two tokens"):
        measured(lm, make_sae("topk", 8, 20, site=SITE), ["one", "two"], tmp_path / "store")


def words() -> PreTrainedTokenizerFast:
    """A tokenizer of two words, one token each, without BOS."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "one": 1, "two": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
