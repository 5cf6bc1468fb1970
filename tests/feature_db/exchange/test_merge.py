"""Merged databases hold what both held; differences are found and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from feature_db import BuildConfig, FeatureDB, Label, build
from feature_db.exchange import diff, merge
from saekit.errors import DatabaseError, Unwritable
from saekit.lm import LanguageModel
from tests.kit.contents import contents
from tests.kit.old_databases import as_version_1, as_version_2
from tests.kit.planted import SITE, PlantedStore, make_sae, make_store

Add = Callable[..., Path]


@pytest.fixture(scope="module")
def other_corpus(tiny_lm: LanguageModel) -> PlantedStore:
    return make_store(tiny_lm, documents=10, seed=3)


@pytest.fixture
def copied(indexed: Path, tmp_path: Path) -> Path:
    """A copy of the shared database that a test may change."""
    shutil.copytree(indexed.parent, tmp_path / "a")
    return tmp_path / "a" / indexed.name


@pytest.fixture
def add(tiny_lm: LanguageModel) -> Add:
    def run(path: Path, store: PlantedStore, *, seed: int = 0, name: str = "") -> Path:
        config = BuildConfig(batch_tokens=200)
        build(
            path, store=store, sae=make_sae(seed), lm=tiny_lm, site=SITE, vectors=path.parent / "vectors", name=name,
            config=config, progress=False,
        ).close()  # fmt: skip
        return path

    return run


def of_people(path: Path) -> set[tuple[Any, ...]]:
    with FeatureDB.open(path) as db:
        labels = {
            (sae.dictionary, n, label.method, label.text)
            for sae in db.saes()
            for n in range(sae.n_features)
            for label in db.feature(sae.dictionary, n).labels
            if label.method in ("human", "oai_token-act-pair")
        }
        return labels | {(name, ref) for name, refs in db.lists().items() for ref in map(str, refs)}


def test_dictionaries_of_both(copied: Path, add: Add, other_corpus: PlantedStore, tmp_path: Path) -> None:
    """A dictionary of another corpus keeps its rows, its words and the labels by people, and is found."""
    second = add(tmp_path / "b" / "features.sqlite", other_corpus, seed=1, name="second")
    with FeatureDB.open(second) as db:
        db.set_label((f"{SITE}@second", 4), "zyzzyva")
        db.set_list("mine", [f"feature:{SITE}@second/9"])
    merged = merge(copied, second, tmp_path / "c")
    assert (merged.kept, merged.added, merged.same, merged.conflicts) == ([str(SITE)], [f"{SITE}@second"], [], [])
    made = tmp_path / "c" / "features.sqlite"
    assert of_people(made) == of_people(copied) | of_people(second)
    with FeatureDB.open(made) as db, FeatureDB.open(second) as theirs, FeatureDB.open(copied) as mine:
        assert db.verify() == []
        for n in range(32):
            assert db.feature(SITE, n) == mine.feature(SITE, n)
            assert db.feature(f"{SITE}@second", n) == theirs.feature(f"{SITE}@second", n)
        assert (db.vectors(f"{SITE}@second") == theirs.vectors(f"{SITE}@second")).all()
        assert [str(ref) for ref in db.lists()["mine"]] == [f"feature:{SITE}/3", f"feature:{SITE}/2", f"feature:{SITE}@second/9"]
        assert db.search("happy", 1)[0].feature == 2
        assert {hit.dictionary for hit in db.search("zyzzyva", 1)} == {f"{SITE}@second"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_dictionary_of_one_corpus_shares_its_words(copied: Path, add: Add, store: PlantedStore, tmp_path: Path) -> None:
    second = add(tmp_path / "b" / "features.sqlite", store, seed=1, name="second")
    merge(copied, second, tmp_path / "c")
    straight = add(copied, store, seed=1, name="second")
    rows, expected = contents(tmp_path / "c" / "features.sqlite"), contents(straight)
    assert len(rows["term"]) == len(expected["term"])
    assert {table: len(found) for table, found in rows.items()} == {table: len(found) for table, found in expected.items()}


@pytest.mark.parametrize("old", [None, as_version_2, as_version_1])
def test_labels_of_one_dictionary_come_from_both(
    indexed: Path, copied: Path, tmp_path: Path, old: Callable[[Path], None] | None
) -> None:
    """Also where the second was written by an earlier version. What both have is there once."""
    with FeatureDB.open(copied) as db:
        db.set_label((SITE, 5), "fünf")
        db.set_label((SITE, 6), "six")
        db.set_label((SITE, 2), "")
        db.add_labels((SITE, 7), [Label("oai_token-act-pair", "sept", 50.0, "sept", {}, "another-model")])
        db.set_list("mine", [f"feature:{SITE}/2", f"feature:{SITE}/11"])
        db.set_list("new", [f"feature:{SITE}/1"])
    if old is not None:
        old(copied)
    before = [path.read_bytes() for path in (indexed, copied)]
    merged = merge(indexed, copied, tmp_path / "c")
    assert (merged.added, merged.same, merged.labels, merged.entries) == ([], [str(SITE)], 3, 2)
    assert merged.conflicts[-1:] == [f"{SITE}/5 is labelled 'five' and 'fünf': both stay, the first is shown."]
    made = tmp_path / "c" / "features.sqlite"
    assert of_people(made) == of_people(indexed) | of_people(copied)
    with FeatureDB.open(made) as db:
        assert db.feature(SITE, 5).label == "five"
        assert [ref.unit for ref in db.lists()["mine"]] == [3, 2, 11]
        assert db.verify() == []
    assert [path.read_bytes() for path in (indexed, copied)] == before


def test_an_entry_that_both_have_is_there_once(indexed: Path, copied: Path, tmp_path: Path) -> None:
    """Notes that differ are joined and reported, also when the result is merged again."""
    mine, theirs = tmp_path / "mine", copied
    shutil.copytree(indexed.parent, mine)
    three, two = f"feature:{SITE}/3", f"feature:{SITE}/2"
    with FeatureDB.open(mine / indexed.name) as db:
        db.add_to_list("mine", [three], "note A")
    with FeatureDB.open(theirs) as db:
        db.add_to_list("mine", [three], "note B")
        db.add_to_list("mine", [two], "alone")
    merged = merge(mine / indexed.name, theirs, tmp_path / "c")
    assert merged.entries == 0
    assert merged.conflicts == [f"{SITE}/3 in the list mine has the notes 'note A' and 'note B': both stay."]
    again = merge(tmp_path / "c" / "features.sqlite", theirs, tmp_path / "d")
    assert again.conflicts == []
    for folder in ("c", "d"):
        with FeatureDB.open(tmp_path / folder / "features.sqlite") as db:
            assert [(str(each.ref), each.note) for each in db.list_entries("mine")] == [(three, "note A; note B"), (two, "alone")]


def test_what_was_measured_of_equal_labels_comes_from_both(copied: Path, tmp_path: Path) -> None:
    """Scores of labels by models and by rules, and requests without an answer, as far as the first lacks them."""
    import sqlite3

    mine = tmp_path / "mine"
    with FeatureDB.open(copied) as db:
        by_rule = next(label.text for label in db.feature(SITE, 9).labels if label.method == "words")
    shutil.copytree(copied.parent, mine)
    with FeatureDB.open(copied) as db:
        db.add_failure((SITE, 11), "llm", "m", "p", "no answer")
    of = {7: ("oai_token-act-pair", "seven"), 9: ("words", by_rule)}
    insert = "INSERT INTO label_score (label, metric, value, n, low, high) VALUES (?, ?, ?, 10, 0, 1)"
    for path, scores in ((mine / copied.name, {"simulation": 0.1}), (copied, {"simulation": 0.2, "balanced_accuracy": 0.9})):
        with sqlite3.connect(path) as connection:
            for number, (method, text) in of.items():
                (label,) = connection.execute(
                    "SELECT id FROM label WHERE feature & 16777215 = ? AND method = ? AND text = ?",
                    (number, method, text),
                ).fetchone()
                for metric, value in scores.items():
                    connection.execute(insert, (label, metric, value))
            if path == copied:
                connection.execute("INSERT INTO measurement VALUES (1, 'weighed', '{}')")
        connection.close()
    merged = merge(mine / copied.name, copied, tmp_path / "c")
    assert [sentence for sentence in merged.conflicts if "weighed" in sentence]
    with FeatureDB.open(tmp_path / "c" / "features.sqlite") as db:
        for number, (method, text) in of.items():
            (label,) = [each for each in db.feature(SITE, number).labels if (each.method, each.text) == (method, text)]
            assert (label.scores["simulation"], label.scores["balanced_accuracy"]) == (0.1, 0.9)
        assert [(str(each.ref), each.reason) for each in db.failures()] == [(f"feature:{SITE}/11", "no answer")]


def test_other_weights_at_one_address_get_another_name(copied: Path, add: Add, store: PlantedStore, tmp_path: Path) -> None:
    second = add(tmp_path / "b" / "features.sqlite", store, seed=1)
    with FeatureDB.open(second) as db:
        db.set_label((SITE, 2), "of other weights")
    merged = merge(copied, second, tmp_path / "c")
    assert merged.added == [f"{SITE}@default-2"] and "other weights" in merged.conflicts[0]
    with FeatureDB.open(tmp_path / "c" / "features.sqlite") as db:
        assert db.feature(f"{SITE}@default-2", 2).label == "of other weights"
        assert db.feature(SITE, 2).label == 'the word "happy" <b>'


def test_rows_of_another_corpus_are_reported(copied: Path, add: Add, other_corpus: PlantedStore, tmp_path: Path) -> None:
    second = add(tmp_path / "b" / "features.sqlite", other_corpus)
    merged = merge(copied, second, tmp_path / "c")
    assert merged.same == [str(SITE)] and "other rows" in merged.conflicts[0]
    assert not diff(copied, tmp_path / "c" / "features.sqlite")


def test_what_waits_for_its_dictionary_is_merged_too(copied: Path, add: Add, store: PlantedStore, tmp_path: Path) -> None:
    with FeatureDB.open(copied) as db:
        db.forget(db.saes()[0])
        waiting = sum(db.set_aside().values())
    second = add(tmp_path / "b" / "features.sqlite", store, seed=1, name="second")
    merge(second, copied, tmp_path / "c")
    with FeatureDB.open(tmp_path / "c" / "features.sqlite") as db:
        assert sum(db.set_aside().values()) == waiting == 5
    merge(add(tmp_path / "d" / "features.sqlite", store), copied, tmp_path / "e")
    with FeatureDB.open(tmp_path / "e" / "features.sqlite") as db:
        assert db.set_aside() == {} and db.feature(SITE, 5).label == "five"


def test_what_a_merge_refuses(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(Unwritable, match="exists"):
        merge(copied, copied, copied.parent)
    with pytest.raises(DatabaseError, match="no feature database"):
        merge(copied, tmp_path / "missing.sqlite", tmp_path / "c")
    import sqlite3

    with sqlite3.connect(copied) as connection:
        connection.execute("UPDATE sae SET vectors = '../../elsewhere.npy'")
    connection.close()
    with pytest.raises(DatabaseError, match="outside"):
        merge(copied, copied, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_differences(indexed: Path, copied: Path, add: Add, store: PlantedStore) -> None:
    assert not diff(indexed, copied)
    add(copied, store, seed=1, name="second")
    with FeatureDB.open(copied) as db:
        db.set_label((SITE, 5), "cinq")
        db.set_label((SITE, 6), "six")
        db.set_label((SITE, 2), "")
        db.set_list("mine", [f"feature:{SITE}/3", f"feature:{SITE}/4"])
    import sqlite3

    with sqlite3.connect(copied) as connection:
        connection.execute("UPDATE feature SET max = max * 2 WHERE number = 9 AND sae = 1")
    connection.close()
    found = diff(indexed, copied)
    assert (found.removed, found.added, found.weights) == ([], [f"{SITE}@second"], [])
    assert [(each.ref, list(each.columns)) for each in found.features] == [(f"feature:{SITE}/9", ["max"])]
    changes = {(each.ref, each.before, each.after) for each in found.labels}
    assert changes == {
        (f"feature:{SITE}/2", 'the word "happy" <b>', None),
        (f"feature:{SITE}/5", "five", "cinq"),
        (f"feature:{SITE}/6", None, "six"),
    }
    assert {(each.ref, each.before, each.after) for each in found.lists} == {
        (f"feature:{SITE}/2", "", None),
        (f"feature:{SITE}/4", None, ""),
    }
    back = diff(copied, indexed)
    assert {(each.ref, each.after, each.before) for each in back.labels} == changes and back.removed == found.added
    assert found.to_dict()["dictionaries"]["added"] == [f"{SITE}@second"]
