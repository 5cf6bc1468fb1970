"""Search by example texts: on planted features, against dense recomputation, with marks, chats, long and bad texts."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from feature_db import FeatureDB, build
from feature_db.meaning.embedders import unit
from feature_db.search.examples import _auc
from feature_db.search.reading import Fired, _said, fired, marked, read
from feature_db.search.shared_words import _nearest
from saekit.activations import Corpus, write_store
from saekit.errors import ConfigError, StoreMismatch
from saekit.lm import LanguageModel
from saekit.sae import SAE, SAEConfig
from tests.kit.planted import SITE, make_documents

POSITIVES = ["the happy cat ran to the park", "Tom said happy days", "a sad dog, a happy dog", "happy Lily", "naïve happy ball"]
NEGATIVES = ["the sad cat ran to the park", "Tom said 12 days", "a sad dog, a BIG dog", "naïve café"]
F = 16


@pytest.fixture(scope="module")
def sae(tiny_lm: LanguageModel) -> SAE:
    """Random directions; feature 3 is the difference of "happy" from other tokens."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(F, tiny_lm.d_model, generator=generator), dim=1)

    def mean(texts: list[str]) -> torch.Tensor:
        tokens, mask = tiny_lm.encode(texts)
        return tiny_lm.run(tokens, attention_mask=mask, read=[SITE], logits=None)[SITE][:, -1].mean(0)

    happy, other = mean(["the happy", "Tom happy", "dog happy"]), mean(["the sad", "Tom park", "dog 12", "cat ball"])
    directions[3] = torch.nn.functional.normalize(happy - other, dim=0)
    bias = -(directions @ (happy + other) / 2)
    tensors = {"W_enc": directions.T.contiguous(), "W_dec": directions, "b_enc": bias, "b_dec": torch.zeros(tiny_lm.d_model)}
    return SAE(SAEConfig("standard", d_in=tiny_lm.d_model, n_latents=F, site_map=SITE), tensors)


@pytest.fixture(scope="module")
def searched(tiny_lm: LanguageModel, sae: SAE, tmp_path_factory: pytest.TempPathFactory) -> FeatureDB:
    folder = tmp_path_factory.mktemp("texts")
    corpus = Corpus.open(make_documents(60))
    store = write_store(folder / "store", tiny_lm, [SITE], corpus, context=24, n_tokens=2500, progress=False)
    return build(folder / "f.sqlite", store=store, sae=sae, lm=tiny_lm, site=SITE, vectors=folder / "vectors", progress=False)


def _dense(lm: LanguageModel, sae: SAE, text: str) -> np.ndarray:
    """(tokens that count, F) activations, one text at a time."""
    tokens, mask = lm.encode([text])
    acts = lm.run(tokens, attention_mask=mask, read=[SITE], logits=None)[SITE][0]
    return sae.encode(acts[lm.ordinary(tokens[0], mask[0])]).detach().numpy()


def test_the_planted_feature_is_first_and_its_numbers_are_those_of_dense_arithmetic(
    searched: FeatureDB, tiny_lm: LanguageModel, sae: SAE
) -> None:
    hits = searched.search_texts(tiny_lm, sae, POSITIVES, NEGATIVES, k=F)
    above, below = (np.array([_dense(tiny_lm, sae, text).max(0) for text in texts]) for texts in (POSITIVES, NEGATIVES))
    assert hits[0].feature == 3 and hits[0].score > hits[1].score
    assert hits[0].auc is not None and hits[0].auc > 0.75
    assert "of 5 texts" in hits[0].why and "of the 4 others" in hits[0].why
    assert {hit.feature for hit in hits} == set(np.flatnonzero(above.max(0) > 0))
    for hit in hits:
        a, b = above[:, hit.feature], below[:, hit.feature]
        pairs = [(x > y) + (x == y) / 2 for x in a for y in b]
        assert hit.auc == pytest.approx(np.mean(pairs), abs=1e-5)
        assert hit.difference == pytest.approx(a.mean() - b.mean(), abs=1e-4)
        recall, false = (a > 0).mean(), (b > 0).mean()
        precision = recall / (recall + false)
        assert hit.f1 == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-5)
        assert hit.to_dict()["auc"] == hit.auc


def test_without_contrast_random_texts_are_the_others(searched: FeatureDB, tiny_lm: LanguageModel, sae: SAE) -> None:
    (hit,) = [hit for hit in searched.search_texts(tiny_lm, sae, POSITIVES, k=F) if hit.feature == 3]
    dense = [_dense(tiny_lm, sae, text) for text in POSITIVES]
    record = searched.feature(hit.ref)
    chance = 1 - (1 - record.density) ** np.mean([len(each) for each in dense])
    largest = np.array([each[:, 3].max() for each in dense])
    recall = (largest > 0).mean()
    precision = recall / (recall + chance)
    assert hit.auc is None
    assert hit.f1 == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-5)
    assert hit.difference == pytest.approx(largest.mean() - chance * record.mean, abs=1e-4)


def test_one_text_is_a_list_of_one(searched: FeatureDB, tiny_lm: LanguageModel, sae: SAE) -> None:
    assert searched.search_texts(tiny_lm, sae, POSITIVES[0]) == searched.search_texts(tiny_lm, sae, [POSITIVES[0]])


def test_only_what_is_marked_counts(searched: FeatureDB, tiny_lm: LanguageModel, sae: SAE) -> None:
    text = "the happy cat ran to the park"
    start, stop = text.index(" happy"), text.index(" cat")
    (given,) = read(tiny_lm, [text], [[(start, stop)]])
    (by_marks,) = read(tiny_lm, text.replace(" happy", "[[ happy]]"))
    assert given.ids == by_marks.ids == tiny_lm.text.plain_ids([text])[0]
    assert given.chosen.tolist() == by_marks.chosen.tolist()
    assert tiny_lm.decode([i for i, wanted in zip(given.ids, given.chosen) if wanted]) == " happy"
    (whole,) = fired(tiny_lm, sae, SITE, read(tiny_lm, text))
    (part,) = fired(tiny_lm, sae, SITE, [given])
    assert 0 < part.n_tokens < whole.n_tokens
    rows = np.flatnonzero(given.chosen) - (0 if tiny_lm.bos_token_id is not None else 1)
    dense = _dense(tiny_lm, sae, text)[rows].max(0)
    assert part.features.tolist() == np.flatnonzero(dense > 0).tolist()
    assert np.allclose(part.largest, dense[part.features], atol=1e-5)


def test_marks_are_taken_out() -> None:
    assert marked("a [[b]] c [[d e]]") == ("a b c d e", [(2, 3), (6, 9)])
    assert marked("a[b]") == ("a[b]", [(0, 4)])
    assert marked("x[[") == ("x[[", [(0, 3)])


def test_brackets_are_text_where_spans_are_given(tiny_lm: LanguageModel) -> None:
    (text,) = read(tiny_lm, ["a[[1]]"], [[]])
    assert tiny_lm.decode(text.ids) == "a[[1]]" and text.chosen.all()


def test_long_texts_are_cut_into_contexts(searched: FeatureDB, tiny_lm: LanguageModel, sae: SAE) -> None:
    text = " ".join(make_documents(60, seed=3)) + " happy"
    (example,) = read(tiny_lm, text)
    begin = [] if tiny_lm.bos_token_id is None else [tiny_lm.bos_token_id]
    size = tiny_lm.max_context - len(begin)
    assert len(example.ids) > 2 * size
    largest = np.zeros(F)
    for start in range(0, len(example.ids), size):
        tokens = torch.tensor([[*begin, *example.ids[start : start + size]]])
        acts = tiny_lm.run(tokens, read=[SITE], logits=None)[SITE][0][tiny_lm.ordinary(tokens[0])]
        largest = np.maximum(largest, sae.encode(acts).detach().numpy().max(0))
    (found,) = fired(tiny_lm, sae, SITE, [example])
    assert np.allclose(found.largest, largest[found.features], atol=1e-5)
    assert searched.search_texts(tiny_lm, sae, text)


def test_chats_are_read_through_the_template(
    searched: FeatureDB, tiny_lm: LanguageModel, sae: SAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    monkeypatch.setattr(tiny_lm.text.tokenizer, "chat_template", template)
    chat = [{"role": "user", "content": "happy dog"}, {"role": "assistant", "content": "a happy cat"}]
    (text,) = read(tiny_lm, chat)
    said = tiny_lm.decode([i for i, wanted in zip(text.ids, text.chosen) if wanted])
    assert "happy dog" in said and "a happy cat" in said and "assistant" not in said
    assert searched.search_texts(tiny_lm, sae, [chat, "a happy ball"])


def test_filters_and_pages(searched: FeatureDB, tiny_lm: LanguageModel, sae: SAE) -> None:
    every = searched.search_texts(tiny_lm, sae, POSITIVES, k=F)
    assert searched.search_texts(tiny_lm, sae, POSITIVES, k=2, offset=1) == every[1:3]
    rare = searched.search_texts(tiny_lm, sae, POSITIVES, k=F, where="density < .4")
    assert rare == [hit for hit in every if hit.density < 0.4] != every
    ordered = searched.search_texts(tiny_lm, sae, POSITIVES, k=F, sort="density desc")
    assert [hit.density for hit in ordered] == sorted((hit.density for hit in every), reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positives": []}, "no example texts"),
        ({"positives": [""]}, "no token"),
        ({"positives": 7}, "no example texts"),
        ({"positives": ["a", 7]}, "no example text"),
        ({"positives": ["a \udcff b"]}, "Unicode"),
        ({"positives": ["a b"], "spans": [[(1, 9)]]}, "not inside"),
        ({"positives": ["a b"], "spans": [["x"]]}, "no pair"),
        ({"positives": ["a b"], "spans": []}, "spans of 0"),
        ({"positives": ["a b"], "k": 0}, "k is 0"),
        ({"positives": ["a b"], "negatives": [""]}, "no token"),
    ],
)
def test_bad_examples_are_named(searched: FeatureDB, tiny_lm: LanguageModel, sae: SAE, arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        searched.search_texts(tiny_lm, sae, **arguments)


def test_another_dictionary_is_refused(searched: FeatureDB, tiny_lm: LanguageModel, sae: SAE) -> None:
    other = SAE(sae.cfg, {name: value * 2 for name, value in sae.state_dict().items()})
    with pytest.raises(StoreMismatch):
        searched.search_texts(tiny_lm, other, "happy")


Index = Callable[..., FeatureDB]


def test_a_model_without_features_in_the_texts_finds_nothing(index: Index, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    from tests.kit.planted import make_sae

    silent = make_sae()
    silent.b_enc.data -= 1e4
    assert index(sae=silent, path=tmp_path / "s" / "f.sqlite").search_texts(tiny_lm, silent, "happy") == []


def test_a_null_content_has_no_words() -> None:
    assert [_said(content) for content in (None, "a dog", [{"type": "text", "text": "a cat"}, {"type": "image"}])] == [
        "", "a dog", "a cat ",
    ]  # fmt: skip


def test_auc_is_the_share_of_pairs_with_ties_as_half() -> None:
    def texts(values: list[float]) -> list[Fired]:
        return [Fired(1, np.array([3]), np.array([value], np.float32), np.array([0])) for value in values]

    random = np.random.default_rng(0)
    above, below = random.integers(1, 9, 40).tolist(), random.integers(1, 7, 30).tolist()
    pairs = [(a > b) + (a == b) / 2 for a in above for b in below]
    assert _auc(texts(above), texts(below), 3) == round(float(np.mean(pairs)), 6)
    assert _auc(texts(above), texts(below), 5) == 0.5  # it fires on none
    many = texts(random.random(20_000).tolist())
    tracemalloc.start()
    _auc(many, many, 3)
    assert tracemalloc.get_traced_memory()[1] < 1 << 26  # all pairs would take 3 GB
    tracemalloc.stop()


def test_words_are_compared_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    vectors = unit(random.normal(size=(60, 8)).astype(np.float32)).astype(np.float16)
    words, text = np.arange(40), np.tile(np.arange(30, 60), 3)
    monkeypatch.setattr("feature_db.search.shared_words._BLOCK", 7)
    expected = (vectors[words].astype(np.float64) @ vectors[text].astype(np.float64).T).max(1)
    expected = np.where(words >= 30, 1, np.clip(expected, 0, 1))
    np.testing.assert_allclose(_nearest(vectors, words, text), expected, atol=1e-5)
