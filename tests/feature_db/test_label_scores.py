"""Labels are scored on documents that the index did not count: right rules near 1, shuffled ones near .5, by every method."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from feature_db import BuildConfig, FeatureDB, Label, build
from feature_db.labels.evidence import Rule
from feature_db.labels.rules import LABEL_METHODS
from feature_db.labels.word_classes import WORD_CLASSES
from feature_db.scorers import SCORERS, Given, Result, Score, Scorer, Subject, score
from feature_db.scorers.heldout import Heldout, heldout_share
from saekit.activations.loader.source import is_heldout
from saekit.errors import ConfigError, DatabaseError, StoreMismatch, UnknownRef
from saekit.lm import LanguageModel
from saekit.lm.model import LanguageModel as _Model
from tests.kit.planted import SITE, F, PlantedStore
from tests.kit.planted_labels import HELDOUT, Planted, plant

Build = Callable[..., FeatureDB]


@pytest.fixture(scope="module")
def planted(tiny_lm: LanguageModel) -> Planted:
    return plant(tiny_lm)


@pytest.fixture(scope="module")
def make(tiny_lm: LanguageModel, planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """`make(**changes)`: index the planted store, with documents held out."""

    def run(folder: Path | None = None, **changes: object) -> FeatureDB:
        path = (folder or tmp_path_factory.mktemp("scores")) / "features.sqlite"
        settings: dict[str, object] = {"split": "train", "heldout": HELDOUT, "store": planted.store, "sae": planted.sae}
        settings |= {"config": BuildConfig(batch_tokens=512), "progress": False, "vectors": path.parent / "vectors"}
        settings["lm"] = tiny_lm
        db = build(path, site=SITE, **{**settings, **changes})  # type: ignore[arg-type]
        db.write_measurement(SITE, planted.effects)
        return db

    return run


def score_all(db: FeatureDB, planted: Planted, lm: _Model, **changes: object) -> list[object]:
    settings: dict[str, object] = {"store": planted.store, "sae": planted.sae, "lm": lm, "progress": False}
    return list(score(db, SITE, **{**settings, **changes}))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def scored(make: Build, planted: Planted, tiny_lm: LanguageModel) -> Iterator[FeatureDB]:
    with make() as db:
        score_all(db, planted, tiny_lm)
        yield db


@pytest.mark.parametrize("method", sorted(LABEL_METHODS))
def test_a_right_rule_scores_near_1_and_a_shuffled_one_near_half(scored: FeatureDB, planted: Planted, method: str) -> None:
    record = scored.feature(SITE, planted.features[method])
    (label,) = (each for each in record.labels if each.method == method)
    assert label.scores["balanced_accuracy"] > 0.95, label
    assert label.scores["balanced_accuracy_hard"] > 0.9
    assert abs(label.scores["balanced_accuracy_shuffled"] - 0.5) < 0.1
    ordinary = is_heldout(planted.store.document, HELDOUT) & ~planted.store.special
    assert label.intervals["balanced_accuracy_shuffled"].n == ordinary.sum()
    for metric in ("balanced_accuracy", "precision", "recall", "f1"):
        of = label.intervals[metric]
        assert of.low is not None and of.high is not None and of.n > 0
        assert 0 <= of.low <= label.scores[metric] <= of.high <= 1 and of.low < of.high


def test_labels_of_other_features_score_near_half(make: Build, planted: Planted, tiny_lm: LanguageModel) -> None:
    """The rules of the planted features, given to features that fire at random."""
    with make() as db:
        rules = {label.method: label.rule for label in db.labels_of(SITE) if label.feature == planted.features.get(label.method)}
        for feature, (method, rule) in enumerate(sorted(rules.items()), start=12):
            db.add_labels((SITE, feature), [Label(f"wrong {method}", method, 0.5, rule=rule)])
        score_all(db, planted, tiny_lm, scorers=["rule"])
        found = [
            label.scores["balanced_accuracy"]
            for feature in range(12, 12 + len(rules))
            for label in db.feature(SITE, feature).labels
            if label.method.startswith("wrong")
        ]
    assert len(found) == len(LABEL_METHODS)
    assert max(abs(value - 0.5) for value in found) < 0.1


def test_scores_equal_brute_force(scored: FeatureDB, planted: Planted) -> None:
    """Of the rule `token`: fires on the tokens that it names, over all ordinary tokens of the held-out documents."""
    store, feature = planted.store, planted.features["pieces"]
    (given,) = (each for each in scored.labels_of(SITE, [7]) if each.method == "pieces")
    chosen = is_heldout(store.document, HELDOUT) & ~store.special
    assert given.rule is not None and given.rule.test == "token"
    predicted = np.isin(store.tokens, given.rule.items)[chosen]
    fires = store.acts[chosen, 7] > 0
    (label,) = (each for each in scored.feature(SITE, 7).labels if each.method == "pieces")
    recall, precision = predicted[fires].mean(), fires[predicted].mean()
    expected = {
        "recall": recall,
        "precision": precision,
        "balanced_accuracy": (recall + (~predicted[~fires]).mean()) / 2,
        "f1": 2 * precision * recall / (precision + recall),
    }
    assert {name: label.scores[name] for name in expected} == pytest.approx(expected)
    assert label.intervals["recall"].n == fires.sum() and label.intervals["precision"].n == predicted.sum()
    assert feature == 3


def test_training_documents_cannot_change_a_score(
    make: Build, planted: Planted, tiny_lm: LanguageModel, scored: FeatureDB
) -> None:
    """With other activations on all documents that the index counted, the same labels get the same scores."""
    acts = planted.store.acts.copy()
    acts[~is_heldout(planted.store.document, HELDOUT)] = np.random.default_rng(1).random(F)
    other = planted._replace(store=dataclasses.replace(planted.store, acts=acts))
    with make() as db:
        score_all(db, other, tiny_lm)
        for feature in sorted(set(planted.features.values())):
            assert db.feature(SITE, feature).labels == scored.feature(SITE, feature).labels


def test_heldout_documents_cannot_change_a_label(make: Build, planted: Planted, tiny_lm: LanguageModel) -> None:
    acts = planted.store.acts.copy()
    acts[is_heldout(planted.store.document, HELDOUT)] = np.random.default_rng(1).random(F)
    with make() as db, make(store=dataclasses.replace(planted.store, acts=acts)) as other:
        assert [db.feature(SITE, f) for f in range(F)] == [other.feature(SITE, f) for f in range(F)]
        documents = {example.document for f in range(F) for example in db.feature(SITE, f).examples}
    assert not is_heldout(np.array(sorted(documents)), HELDOUT).any()


def test_an_index_of_all_documents_is_refused(make: Build, planted: Planted, tiny_lm: LanguageModel) -> None:
    with make(split="all") as db:
        with pytest.raises(StoreMismatch, match=r"no document is left.*saekit index"):
            score_all(db, planted, tiny_lm)
        for corpus in (
            {},
            {"split": "heldout 0.05"},
            {"split": "train"},
            {"split": "train 0"},
            {"split": "train 1.5"},
            {"split": "train x"},
        ):
            with pytest.raises(StoreMismatch):
                heldout_share(db.dictionary(SITE), corpus)
        with pytest.raises(StoreMismatch, match="it was imported") as refused:
            heldout_share(db.dictionary(SITE), {"imported": "neuronpedia"})
        assert "Index it again" not in refused.value.hint


@pytest.mark.parametrize("before", [{"split": "all"}, {"heldout": HELDOUT / 4}], ids=["all", "a smaller share"])
def test_labels_of_another_split_are_not_scored(
    make: Build, planted: Planted, tiny_lm: LanguageModel, tmp_path: Path, before: dict[str, object]
) -> None:
    """A model wrote its label from documents that the next index holds out; a person, and the next label, needed none of them."""
    right = Rule("word", ("happy", "sad"))
    with make(tmp_path, **before) as db:
        db.add_labels((SITE, 2), [Label("llm", "moods", 10.0, "moods", model="m", prompt="p", rule=right)])
        db.add_label((SITE, 2), "happy and sad")
    with make(tmp_path) as db:
        rule, embedding = score_all(db, planted, tiny_lm, features=[2])
        old, hand = (next(each for each in db.feature(SITE, 2).labels if each.method == how) for how in ("llm", "human"))
        assert not old.scores and "embedding_auroc" in hand.scores
        assert [n for reason, n in rule.failed.items() if "another text or split" in reason] == [1]  # type: ignore[attr-defined]
        assert [n for reason, n in embedding.failed.items() if "another text or split" in reason] == [1]  # type: ignore[attr-defined]
        db.add_labels((SITE, 2), [Label("llm", "moods", 10.0, "moods", model="m", prompt="p", rule=right)])
        score_all(db, planted, tiny_lm, features=[2])
        (new,) = (each for each in db.feature(SITE, 2).labels if each.method == "llm")
        assert new.scores["balanced_accuracy"] > 0.95


def test_labels_of_unknown_documents_are_not_scored(make: Build, planted: Planted, tiny_lm: LanguageModel) -> None:
    """Those that were imported, or that an earlier version wrote."""
    with make() as db:
        db.add_new_labels(SITE, [(2, [Label("delphi", "moods", 50.0, rule=Rule("word", ("happy", "sad")))])])
        (outcome,) = score_all(db, planted, tiny_lm, features=[2], scorers=["rule"], options={"methods": ["delphi"]})
        assert (outcome.scored, *outcome.failed.values()) == (0, 1)  # type: ignore[attr-defined]
        assert "not known" in next(iter(outcome.failed))  # type: ignore[attr-defined]


def test_scores_of_another_split_do_not_come_back(make: Build, planted: Planted, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    def labels(db: FeatureDB) -> list[object]:
        return [each for each in db.feature(SITE, 2).labels if each.method in ("llm", "human")]

    with make(tmp_path) as db:
        label = Label("llm", "moods", 10.0, "moods", {"share": 0.5}, "m", "p", Rule("word", ("happy", "sad")))
        db.add_labels((SITE, 2), [label])
        db.add_label((SITE, 2), "happy and sad")
        score_all(db, planted, tiny_lm, features=[2])
        before = labels(db)
    with make(tmp_path, config=BuildConfig(batch_tokens=512, top=3)) as db:  # the same documents in another build
        assert labels(db) == before and db.labels_of(SITE, [2])[-1].barred == ""
    with make(tmp_path, heldout=HELDOUT / 2) as db:
        hand, llm = labels(db)
        assert not hand.scores and llm.scores == {"share": 0.5}  # type: ignore[attr-defined]
        assert db.sql("select 1 from scores where n is not null").rows == []
    with closing(sqlite3.connect(tmp_path / "features.sqlite")) as connection:
        assert connection.execute("SELECT rank FROM label WHERE method = 'llm'").fetchall() == [(10.0,)]


def test_other_activations_are_refused(make: Build, planted: Planted, tiny_lm: LanguageModel) -> None:
    with make() as db:
        with pytest.raises(StoreMismatch, match="other activations"):
            score_all(db, planted._replace(store=dataclasses.replace(planted.store, name="another")), tiny_lm)
        with pytest.raises(StoreMismatch, match="dictionary given"):
            changed = plant(tiny_lm, n=5).sae
            changed.W_dec.data.mul_(2)
            score_all(db, planted._replace(sae=changed), tiny_lm)
        with pytest.raises(ConfigError, match="no scorer"):
            score_all(db, planted, tiny_lm, scorers=["rules"])
        with pytest.raises(UnknownRef):
            score_all(db, planted, tiny_lm, features=[F])


def test_a_store_without_a_heldout_document(planted: Planted, tiny_lm: LanguageModel) -> None:
    store = planted.store
    keep = ~is_heldout(store.document, HELDOUT)
    columns = (getattr(store, name)[keep] for name in ("tokens", "position", "document", "special", "acts"))
    with pytest.raises(StoreMismatch, match="--heldout"):
        Heldout.read(PlantedStore(*columns), tiny_lm, planted.sae, SITE, HELDOUT, progress=False)


def test_examples_are_of_heldout_documents(planted: Planted, tiny_lm: LanguageModel) -> None:
    heldout = Heldout.read(planted.store, tiny_lm, planted.sae, SITE, HELDOUT, progress=False)
    assert set(heldout.documents) == set(planted.store.document[is_heldout(planted.store.document, HELDOUT)])
    subject = Subject(tiny_lm, planted.sae, None, heldout, planted.sae.W_dec.detach().numpy(), progress=False)  # type: ignore[arg-type]
    found = subject.examples(2, 8)
    assert len(found.active) == len(found.random) == len(found.hard) == 8
    near = subject.neighbours(2)
    for example in found.active:
        assert example.values[example.peak] == example.values.max() > 0
        assert "happy" in subject.text(example) or "sad" in subject.text(example)
    for example in [*found.random, *found.hard]:
        assert not example.values.any() and example.token_ids[example.peak] == heldout.text.tokens_N[example.row]
    for example in found.hard:
        assert any(example.row in heldout.codes.rows(other) for other in near)
    for kind in (found.active, found.random, found.hard):
        documents = [example.document for example in kind]
        assert len(set(documents)) == len(documents) and is_heldout(np.array(documents), HELDOUT).all()
    again = subject.examples(2, 8)
    assert [example.row for example in again.hard] == [example.row for example in found.hard]


def test_the_best_label_is_shown(make: Build, planted: Planted, tiny_lm: LanguageModel) -> None:
    right, wrong = Rule("word", ("happy", "sad")), Rule("word", ("park",))
    with make() as db:
        found = [Label("wrong", "parks", 10.0, "parks", rule=wrong), Label("right", "moods", 0.0, "moods", rule=right)]
        db.add_labels((SITE, 2), found)
        assert db.feature(SITE, 2).label == "parks"
        score_all(db, planted, tiny_lm)
        record = db.feature(SITE, 2)
        assert record.label != "parks" and record.labels[0].scores["balanced_accuracy"] > 0.95
        hits = db.search("happy", where="label_score > .95")
        assert 2 in {hit.feature for hit in hits} and all(hit.feature in planted.features.values() for hit in hits)
        sql = "select label_score from features where number = 2"
        assert db.sql(sql).rows == [(record.labels[0].scores["balanced_accuracy"],)]
        db.set_label((SITE, 2), "feelings")
        assert db.feature(SITE, 2).label == "feelings" and db.sql(sql).rows == [(None,)]


def test_it_goes_on_where_it_was_stopped(make: Build, planted: Planted, tiny_lm: LanguageModel) -> None:
    asked: list[int] = []
    stop_at = 5

    def measure(subject: Subject, labels: Sequence[Given]) -> Iterator[Result]:
        for label in labels:
            asked.append(label.id)
            if len(asked) == stop_at:
                raise KeyboardInterrupt
            if label.feature == 2:
                yield Result(label, failed="not today")
            else:
                yield Result(label, {"dummy": Score(0.5, 1)})

    SCORERS.register("dummy", Scorer(measure, "dummy", "For tests."))
    try:
        with make() as db:
            every = sorted(label.id for label in db.labels_of(SITE))
            with pytest.raises(KeyboardInterrupt):
                score_all(db, planted, tiny_lm, scorers=["dummy"])
            first, stop_at = list(asked), 0
            asked.clear()
            (outcome,) = score_all(db, planted, tiny_lm, scorers=["dummy"])
            failed = [label.id for label in db.labels_of(SITE, [2])]
            assert sorted(set(first[:-1]) | set(asked)) == every and set(first[:-1]) & set(asked) <= set(failed)
            assert outcome.known == len(set(first[:-1]) - set(failed))  # type: ignore[attr-defined]
            assert outcome.failed == {"not today": len(failed)}  # type: ignore[attr-defined]
            asked.clear()
            score_all(db, planted, tiny_lm, scorers=["dummy"], features=[3, 4])
            assert not asked
            (other,) = score_all(db, planted, tiny_lm, scorers=["dummy"], options={"methods": ["llm"]})
            assert other.known == 0  # type: ignore[attr-defined]
            score_all(db, planted, tiny_lm, scorers=["dummy"], features=[3, 4], again=True)
            assert sorted(asked) == sorted(label.id for label in db.labels_of(SITE, [3, 4]))
            db.verify()
    finally:
        SCORERS.unregister("dummy")


def test_meaning_and_surprisal(make: Build, planted: Planted, tiny_lm: LanguageModel) -> None:
    with make() as db:
        score_all(db, planted, tiny_lm, scorers=["embedding", "surprisal"], features=[2, 4, 20], options={"texts": 6})
        labels = {label.method: label for label in db.feature(SITE, 2).labels}
        assert labels["words"].scores["embedding_auroc"] > 0.9
        for label in labels.values():
            of = label.intervals["surprisal_auroc"]
            assert of.low is not None and of.high is not None and of.low <= label.scores["surprisal_auroc"] <= of.high


def test_labels_of_what_is_caused_are_made_when_it_is_measured(make: Build, planted: Planted) -> None:
    with make() as db:
        (label,) = (each for each in db.labels_of(SITE, [11]) if each.method == "causes")
        assert label.rule is not None and label.rule.items == tuple(planted.effects.tokens["causes"].tokens_FK[11])
        said = [each.text for f in range(F) for each in db.feature(SITE, f).labels if each.method == "says"]
        db.write_measurement(SITE, planted.effects)  # again: nothing is doubled
        assert [each.method for each in db.labels_of(SITE, [11])].count("causes") == 1
        assert [each.text for f in range(F) for each in db.feature(SITE, f).labels if each.method == "says"] == said
        assert not any(each.method == "causes" for each in db.labels_of(SITE, range(11)))
    with make(config=BuildConfig(batch_tokens=512, labels=("words",))) as db:
        assert {label.method for label in db.labels_of(SITE)} == {"words"}


def test_a_damaged_rule_is_a_typed_error(make: Build) -> None:
    with make() as db:
        for rule in ("", "[]", '{"test": 1, "items": []}', '{"test": "word", "items": [1.5]}', "x" * 100):
            with db._edits.transaction() as connection:
                connection.execute("UPDATE label SET rule = ? WHERE id = 1", (rule,))
            with pytest.raises(DatabaseError, match="damaged at the labels"):
                db.labels_of(SITE)


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("past tense", "walked tried said was used", "bed need red seed wicked"),
        ("ing", "running playing", "ring king thing-"),
        ("adverb", "quickly happily", "fly only-"),
        ("superlative", "biggest best", "est rest"),
        ("number", "12 2024 1,000", "twelve a1"),
        ("pronoun", "he she", "the"),
        ("preposition", "of in", "cat"),
    ],
)
def test_classes_of_words(name: str, inside: str, outside: str) -> None:
    holds = WORD_CLASSES[name].holds
    assert all(holds(word) for word in inside.split()) and not any(holds(word) for word in outside.split())
