"""Labels, notes and lists from Python: they are set aside with their dictionary and come back, and bad input changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from feature_db import BuildConfig, FeatureDB
from saekit.errors import ConfigError, UnknownRef
from saekit.objects import Ref
from tests.kit.planted import SITE, F, make_sae

Index = Callable[..., FeatureDB]


def test_all_of_it_waits_for_its_dictionary(index: Index) -> None:
    with index() as db:
        db.add_label((SITE, 4), "a stray dog")
        db.add_label((SITE, 4), "dogs")
        db.add_note((SITE, 4), "as in the park")
        db.add_note((SITE, 5), "see 4")
        db.add_to_list("pets", [(SITE, 4), (SITE, 5)], "to check")
        before = [db.feature(SITE, 4), db.notes((SITE, 5)), db.list_entries("pets")]
    with index(sae=make_sae(9)) as other:
        assert not other.notes((SITE, 4)) and not other.lists() and not other.search("park", by="label")
        assert other.set_aside() == {make_sae().fingerprint(): 6} and other.by_people() == (4, 2)
        assert other.verify() == []
    with index() as again:
        assert [again.feature(SITE, 4), again.notes((SITE, 5)), again.list_entries("pets")] == before
        assert [hit.feature for hit in again.search("park", by="label")] == [4] and again.set_aside() == {}
        assert again.verify() == [] and again.sealed(SITE)


def test_the_same_weights_at_another_address_share_all_of_it(index: Index) -> None:
    with index() as db:
        for text in ("a stray dog", "dogs"):
            db.add_label((SITE, 4), text)
        db.add_note((SITE, 4), "as in the park")
        db.add_to_list("pets", [(SITE, 5), (SITE, 4)], "to check")
        db.add_to_list("pets", [(SITE, 6)])
    twin = f"{SITE}@second"
    for config in (None, BuildConfig(top=5)):  # a rebuild adds nothing
        with index(name="second", **({} if config is None else {"config": config})) as db:
            assert [label.text for label in db.feature((twin, 4)).labels[:2]] == ["a stray dog", "dogs"]
            assert db.notes((twin, 4)) == db.notes((SITE, 4)) and len(db.notes((twin, 4))) == 1
            assert {hit.ref_text for hit in db.search("park", by="label")} == {f"feature:{SITE}/4", f"feature:{twin}/4"}
            of_each: dict[object, list[tuple[int | None, str]]] = {place: [] for place in (SITE, twin)}
            for entry in db.list_entries("pets"):
                of_each[twin if "@" in str(entry.ref) else SITE].append((entry.ref.unit, entry.note))
            assert of_each[twin] == of_each[SITE] == [(5, "to check"), (4, "to check"), (6, "")]
            assert db.by_people() == (6, 6) and db.verify() == []


def test_lists_keep_notes_and_order(db: FeatureDB) -> None:
    assert db.add_to_list("mine", [(SITE, 3), (SITE, 1), (SITE, 3)], "first") == 2
    assert db.add_to_list("mine", [(SITE, 1), (SITE, 2)]) == 1
    assert [(entry.ref.unit, entry.note) for entry in db.list_entries("mine")] == [(3, "first"), (1, "first"), (2, "")]
    db.set_list("mine", [f"feature:{SITE}/2", f"feature:{SITE}/3"])
    assert [(entry.ref.unit, entry.note) for entry in db.list_entries("mine")] == [(2, ""), (3, "first")]
    assert db.remove_from_list("mine", [(SITE, 2), (SITE, 9)]) == 1
    assert db.lists() == {"mine": [Ref.feature(SITE, 3)]}
    assert db.feature(SITE, 3).lists == ["mine"] and db.sql("select note from lists").rows == [("first",)]
    assert db.remove_from_list("mine", [(SITE, 3)]) == 1 and db.lists() == {}


def test_labels_by_hand(db: FeatureDB) -> None:
    db.set_label((SITE, 3), "one")
    created = db.feature(SITE, 3).labels[0].created
    assert created is not None and created.endswith("+00:00")
    db.set_label((SITE, 3), "one")  # it is the same label
    db.add_label((SITE, 3), "two")
    assert [label.text for label in db.feature(SITE, 3).labels[:2]] == ["one", "two"]
    assert db.remove_label((SITE, 3), "three") == 0 and db.remove_label((SITE, 3), "one") == 1
    assert db.feature(SITE, 3).label == "two" and db.remove_label((SITE, 3)) == 1
    assert all(label.method != "human" for label in db.feature(SITE, 3).labels)


BAD: list[tuple[Callable[[Any], Any], type[Exception]]] = [
    (lambda db: db.add_label((SITE, 3), " "), ConfigError),
    (lambda db: db.add_label((SITE, 3), 5), ConfigError),
    (lambda db: db.add_note((SITE, 3), "\ud800"), ConfigError),
    (lambda db: db.add_note((SITE, 3), b"bytes"), ConfigError),
    (lambda db: db.set_label((SITE, 3), None), ConfigError),
    (lambda db: db.add_note((SITE, F), "x"), UnknownRef),
    (lambda db: db.add_to_list("new", [(SITE, 1), (SITE, F)]), UnknownRef),
    (lambda db: db.add_to_list(None, [(SITE, 1)]), ConfigError),
    (lambda db: db.list_entries("nobody's"), UnknownRef),
    (lambda db: db.remove_from_list("new", ["neuron:0/3"]), UnknownRef),
]


def test_bad_input_changes_nothing(db: FeatureDB) -> None:
    before = db.path.read_bytes()
    for act, error in BAD:
        with pytest.raises(error):
            act(db)
    assert db.path.read_bytes() == before and db.verify() == []
