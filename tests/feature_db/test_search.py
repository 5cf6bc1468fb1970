"""Search: on planted features, on the real model with features of known meaning, and with any string as a query."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_db import FeatureDB, Label, build
from feature_db.index.words import Vocabulary, Words
from feature_db.search.query import STOP_WORDS, query_words
from saekit.activations import ActivationStore, Corpus, write_store
from saekit.errors import ConfigError
from saekit.lm import LanguageModel, Site
from saekit.sae import SAE, SAEConfig
from tests.kit.planted import SITE, PlantedStore, inside_word, make_sae, make_store

Index = Callable[..., FeatureDB]
_CONCEPTS = (
    "happy sad dog cat park ball mom dad tree sun car bird fish play eat run friend toy scared smiled water big red girl boy"
)
CONCEPTS = _CONCEPTS.split()
STORIES_SITE = Site("resid_post", 2)
NOISE = 40


@pytest.fixture(scope="module")
def searched(tiny_lm: LanguageModel, store: PlantedStore, tmp_path_factory: pytest.TempPathFactory) -> FeatureDB:
    """The planted store's database. Tests must leave it as they found it."""
    path = tmp_path_factory.mktemp("search") / "f.sqlite"
    vectors = path.parent / "vectors"
    build(path, store=store, sae=make_sae(), lm=tiny_lm, site=SITE, vectors=vectors, progress=False)
    other = make_store(tiny_lm, seed=4)
    return build(path, store=other, sae=make_sae(2), lm=tiny_lm, site="mlp_out.0", vectors=vectors, progress=False)


def test_a_planted_word_is_found_and_why_is_said(searched: FeatureDB) -> None:
    for query in ("happy", "Happy!", "the HAPPY", "happy's"):
        best, second = searched.search(query, 2, site=SITE)
        assert (best.feature, best.site, best.label) == (2, str(SITE), "fires on 'happy'")
        assert best.score > 0.8 > 0.5 > second.score
        assert "fires on 'happy' (100% of its activation), near in meaning" in best.why
        assert best.density == searched.feature(best.ref).density
    assert best.to_dict() == {
        "ref": f"feature:{SITE}/2",
        "dictionary": str(SITE),
        "site": str(SITE),
        "name": "",
        "feature": 2,
        "score": best.score,
        "label": best.label,
        "density": best.density,
        "why": best.why,
    }


def test_both_sites_are_searched_unless_one_is_named(searched: FeatureDB) -> None:
    assert {hit.site for hit in searched.search("happy", 2)} == {"mlp_out.0", "resid_post.0"}
    assert {hit.site for hit in searched.search("happy", 99, site="mlp_out.0")} == {"mlp_out.0"}
    assert searched.search("happy", 3, site=SITE.hook_name) == searched.search("happy", 3, site=SITE)


def test_word_forms_share_a_stem(searched: FeatureDB) -> None:
    hits = searched.search("run", 99, site=SITE)
    assert any("'running'" in hit.why for hit in hits)
    assert searched.search("parks", 5)


def test_promoted_tokens_are_a_signal(index: Index, tiny_lm: LanguageModel, store: PlantedStore) -> None:
    """A feature that fires at random but writes the unembedding of a word's tokens is found by that word."""
    sae = make_sae()
    for token in tiny_lm.encode([" happ"], bos=False)[0][0].tolist():
        sae.W_dec.data[17] += 30 * tiny_lm.W_U[:, token] / tiny_lm.W_U[:, token].norm()
    plain = {hit.feature: hit.score for hit in index().search("happy", 99)}
    planted = {hit.feature: hit for hit in index(sae=sae).search("happy", 99)}
    assert "promotes ' happ'" in planted[17].why
    assert planted[17].score > plain.get(17, 0) + 0.01, "what it causes is weaker evidence than what it fires on"


def test_a_feature_says_words_that_are_near_in_meaning(index: Index, tiny_lm: LanguageModel, store: PlantedStore) -> None:
    """A feature that fires at random but promotes a word is found by another word of that meaning."""
    sae = make_sae()
    for token in tiny_lm.encode([" happ"], bos=False)[0][0].tolist():
        sae.W_dec.data[17] += 30 * tiny_lm.W_U[:, token] / tiny_lm.W_U[:, token].norm()
    database = index(sae=sae)
    assert not database.search("joyful", 3, by="promotes")
    first, *others = database.search("joyful", 99, by="says")
    assert first.feature == 17 and "' happ'" in first.why
    promoted = {effect.token: effect for hit in [first, *others] for effect in database.feature(hit.ref).promoted}
    assert all(hit.why.split("'")[1] in promoted for hit in others)
    assert "says" not in {part for hit in database.search("joyful", 99) for part in hit.why.split()}
    assert not database.search("qqqxz", 3, by="says")


def test_signals_can_be_chosen(searched: FeatureDB) -> None:
    assert {hit.feature for hit in searched.search("happy", 99, site=SITE, by="fires_word")} >= {2}
    suppressed = searched.search("happy", 99, site=SITE, by="suppresses")
    assert suppressed
    for hit in suppressed:
        tokens = {effect.token for effect in searched.feature(hit.ref).suppressed}
        assert hit.why in {f"suppresses '{token}'" for token in tokens}
    assert not any("suppresses" in hit.why for hit in searched.search("happy", 99))
    with pytest.raises(ConfigError, match=r"no signal 'fires'.*fires_word"):
        searched.search("happy", by=["fires"])


def test_filters_come_before_the_top(searched: FeatureDB) -> None:
    by = ("fires_word", "peaks", "before", "context", "promotes", "text")
    everything = searched.search("the", 99, site=SITE, by=by)
    assert len(everything) > 10
    wanted = [hit for hit in everything if 0.01 <= hit.density <= 0.05]
    assert 0 < len(wanted) < len(everything)
    assert searched.search("the", 2, site=SITE, density=(0.01, 0.05), by=by) == wanted[:2]
    kinds = {hit.feature: searched.feature(hit.ref).kind for hit in everything}
    for kind in set(kinds.values()):
        same = [hit for hit in everything if kinds[hit.feature] == kind]
        assert searched.search("the", 3, site=SITE, kinds=kind, by=by) == same[:3]
    assert searched.search("the", 99, site=SITE, kinds=[]) == []


def test_dead_features_stay_away_unless_asked(index: Index) -> None:
    db = index()
    db.add_labels((SITE, 0), [Label("llm", "royal gardens", 10.0, "royal gardens")])
    assert 0 not in [hit.feature for hit in db.search("royal gardens")]
    assert db.search("royal gardens", live=False)[0].feature == 0


def test_more_words_matched_is_better(searched: FeatureDB, index: Index) -> None:
    db = index()
    for feature, text in ((5, "royal gardens"), (6, "royal things"), (7, "gardens"), (8, "royal gardens in winter")):
        db.set_label((SITE, feature), text)
    assert {hit.feature for hit in db.search("royal gardens", 2)} == {5, 8}
    assert {hit.feature for hit in db.search("the royal winter gardens", 4)} == {5, 6, 7, 8}
    assert db.search("the royal winter gardens", 1)[0].feature == 8


def test_the_feature_of_several_words_beats_those_of_one(index: Index, tiny_lm: LanguageModel) -> None:
    store = make_store(tiny_lm)
    words = ("cat", "park", "ball")
    fires = np.stack([inside_word(tiny_lm, store.tokens, word) for word in words])
    acts = store.acts.copy()
    acts[:, 5] = fires.any(0)
    acts[:, 6:9] = 2 * fires.T
    db = index(store=replace(store, acts=acts))
    assert [db.search(word, 1)[0].feature for word in words] == [6, 7, 8]
    best, second, *_ = db.search("cat, park and ball")
    assert best.feature == 5 and best.score > 0.9 > second.score
    assert {hit.feature for hit in db.search("cat and zebra", 2)} == {5, 6}, "a word nobody knows says nothing"


def test_what_people_write_counts_by_itself_and_in_whole_words(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    db = index()
    db.set_label((SITE, 2), "nonadjectives")  # a rule says "adjectives"
    assert {hit.feature: hit.score for hit in db.search("adjectives", 40, by="label")}[2] < 0.1
    monkeypatch.setattr("feature_db.search.lookup.LABEL_LIMIT", 0)  # as if rules had labelled many features with the words before
    db.add_note((SITE, 9), "A long note about what it does in several texts, which says nothing of what people call it.")
    for feature in (9, 30):
        db.set_label((SITE, feature), "zebras")
    hits = db.search("zebra", by="label")
    assert [(hit.feature, hit.score) for hit in hits] == [(9, 1.0), (30, 1.0)]
    db.add_note((SITE, 12), "striped giraffe")
    assert [hit.feature for hit in db.search("giraffes", by="label")] == [12]


def test_equal_scores_are_ordered_by_number(index: Index) -> None:
    db = index()
    for feature in (9, 4, 12):
        db.set_label((SITE, feature), "zebra")
    assert [hit.feature for hit in db.search("zebra", by="label")] == [4, 9, 12]
    assert [hit.feature for hit in db.search("zebra", 3)] == [4, 9, 12]
    assert db.search("zebra", 2) == db.search("zebra", 3)[:2]


def test_templates_of_labels_match_nothing(searched: FeatureDB) -> None:
    for query in ("fires", "promotes", "peaks"):
        assert searched.search(query, by="label") == []


def test_punctuation_can_be_searched(searched: FeatureDB) -> None:
    assert any("fires on '!'" in hit.why or "peaks on '!'" in hit.why for hit in searched.search("!", 99))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.text(max_size=40), st.text(alphabet="\"'*():^-+{}AND OR NOT NEAR happy the dog\x00%_\\", max_size=40)))
def test_any_query_is_answered(searched: FeatureDB, query: str) -> None:
    hits = searched.search(query, 5)
    assert hits == sorted(hits, key=lambda hit: -hit.score)
    assert all(0 < hit.score <= 1 and hit.why for hit in hits)
    assert hits == searched.search(query, 5)


def test_strange_requests(searched: FeatureDB) -> None:
    assert searched.search("\ud800 happy", 1)[0].feature == 2
    assert searched.search("", 5) == searched.search("xyzzy", 5) == []
    assert searched.search("happy", density=(0.9, 0.1)) == []


def test_stop_words_are_dropped_unless_there_is_nothing_else() -> None:
    assert query_words("The dog, and the DOG's Happy ball") == ["dog", "happy", "ball"]
    assert query_words("to be or not") == ["to", "be", "or", "not"]
    assert query_words("don't") == ["don't"]
    assert query_words(" ?! ") == ["?!"] and query_words("  ") == []
    assert "happy" not in STOP_WORDS


def test_no_query_scans_the_features(searched: FeatureDB) -> None:
    """Every statement of a search goes through an index: none visits all rows of a large table."""
    statements: list[str] = []
    searched._db.set_trace_callback(statements.append)
    searched.search("happy dog", 5)
    searched._db.set_trace_callback(None)
    plans = sqlite3.connect(f"file:{searched.path}?mode=ro", uri=True)
    asked = [s for s in statements if s.startswith("SELECT") and "_fts_" not in s and "'main'" not in s]
    assert len(asked) > 10
    for statement in asked:
        for *_, step in plans.execute(f"EXPLAIN QUERY PLAN {statement}"):
            assert not step.startswith(("SCAN feature", "SCAN s ", "SCAN term", "SCAN label")) or "VIRTUAL TABLE" in step, (
                statement
            )
    plans.close()


# On the real model


@pytest.fixture(scope="module")
def stories_store(stories_lm: LanguageModel, tinystories_path: Path, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    documents = list(itertools.islice(Corpus.open(tinystories_path).documents(), 200))
    folder = tmp_path_factory.mktemp("stories") / "store"
    return write_store(folder, stories_lm, [STORIES_SITE], Corpus.open(documents), context=256, progress=False)


@pytest.fixture(scope="module")
def concept_sae(stories_lm: LanguageModel, stories_store: ActivationStore) -> SAE:
    """Feature i fires where the model has read the word CONCEPTS[i]: its direction is what sets the word's last token apart,
    its threshold lets through the best so many tokens as there are such words. The other features are random directions."""
    blocks = list(stories_store.stream([STORIES_SITE], batch_tokens=10**9))
    tokens, position, document, special = (
        torch.cat([getattr(block, name) for block in blocks]).numpy()
        for name in ("tokens_N", "position_N", "document_N", "special_N")
    )
    acts = torch.cat([block.acts[STORIES_SITE] for block in blocks])
    words = Words(Vocabulary.of(stories_lm.token_strings(range(stories_lm.vocab_size))), stories_lm.decode)
    read = words.read(tokens, position, document, ~special)
    last = np.append(read.word_start[1:] != read.word_start[:-1], True)
    centred = acts - acts[~special].mean(0)
    covariance = centred[~special].T @ centred[~special] / int((~special).sum())
    whiten = torch.linalg.inv(covariance + 1e-3 * covariance.diagonal().mean() * torch.eye(len(covariance)))
    W, bias = torch.zeros(len(CONCEPTS) + NOISE, 64), torch.zeros(len(CONCEPTS) + NOISE)
    generator = torch.Generator().manual_seed(0)
    for i in range(len(W)):
        if i < len(CONCEPTS):
            rows = np.flatnonzero((read.word == words.texts.index(CONCEPTS[i])) & last)
            W[i], n = whiten @ centred[rows].mean(0), len(rows)
        else:
            W[i], n = whiten @ torch.randn(64, generator=generator), int(0.02 * len(tokens))
        W[i] /= W[i].norm()
        bias[i] = -(centred[~special] @ W[i]).topk(n + 1).values[-1]
    mean = acts[~special].mean(0)
    tensors = {"W_enc": W.T.clone(), "W_dec": W.clone(), "b_enc": bias, "b_dec": mean}
    return SAE(SAEConfig("standard", d_in=64, n_latents=len(W), site_map=STORIES_SITE), tensors)


@pytest.fixture(scope="module")
def stories_db(
    stories_lm: LanguageModel, stories_store: ActivationStore, concept_sae: SAE, tmp_path_factory: pytest.TempPathFactory
) -> FeatureDB:
    folder = tmp_path_factory.mktemp("stories-db")
    return build(
        folder / "f.sqlite",
        store=stories_store,
        sae=concept_sae,
        lm=stories_lm,
        site=STORIES_SITE,
        vectors=folder / "vectors",
        progress=False,
    )


def test_concepts_are_found_in_the_real_model(stories_db: FeatureDB) -> None:
    found, shown = 0, []
    for i, concept in enumerate(CONCEPTS):
        best = stories_db.search(concept, 1)[0]
        found += best.feature == i
        top = [example for example in stories_db.feature(best.ref).examples if example.bucket == "top"]
        shown.append(np.mean([concept in "".join(e.tokens[max(e.peak - 6, 0) : e.peak + 7]).lower() for e in top]))
    assert found >= 0.9 * len(CONCEPTS)
    assert np.mean(shown) > 0.9 and np.min(shown) > 0.4


def test_running_the_query_finds_features_that_words_do_not(
    stories_db: FeatureDB, stories_lm: LanguageModel, concept_sae: SAE
) -> None:
    """A misspelt word is in no index, but the model reads it."""
    by = ("fires_word", "peaks", "label", "promotes", "deep")
    assert stories_db.search("hapy doggg", by=by) == []
    hits = stories_db.search("hapy doggg", 5, lm=stories_lm, sae=concept_sae, by=by)
    assert hits and all("fires on the query" in hit.why for hit in hits)
    plain = {hit.feature: hit.score for hit in stories_db.search("sad", 50)}
    deep = stories_db.search("sad", 50, lm=stories_lm, sae=concept_sae)
    assert all(hit.score >= plain.get(hit.feature, 0) for hit in deep)
    assert deep[0].feature == CONCEPTS.index("sad")
