"""Conditions on features, sorting and paging: against Python, and with any text."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_db import FeatureDB, FeatureRecord, build
from feature_db.search import search
from feature_db.search.columns import COLUMNS
from feature_db.search.where import condition
from saekit.errors import ConfigError
from saekit.lm import LanguageModel
from tests.kit.planted import SITE, PlantedStore, make_sae

BY = ("fires_word", "peaks", "before", "context", "promotes", "text")


@pytest.fixture(scope="module")
def searched(tiny_lm: LanguageModel, store: PlantedStore, tmp_path_factory: pytest.TempPathFactory) -> FeatureDB:
    path = tmp_path_factory.mktemp("where") / "f.sqlite"
    db = build(path, store=store, sae=make_sae(), lm=tiny_lm, site=SITE, vectors=path.parent / "vectors", progress=False)
    db.set_label((SITE, 5), "by 'hand' \"and\" foot")
    db.set_list("mine", [f"feature:{SITE}/{number}" for number in (7, 2, 3)])
    return db


CONDITIONS = {
    "density < .01": lambda r: r.density < 0.01,
    "density >= 1e-2 and max > 3": lambda r: r.density >= 0.01 and r.max > 3,
    "kind = 'word' or kind == \"class\"": lambda r: r.kind in ("word", "class"),
    "not (kind in ('word', 'class') or count < 5)": lambda r: not (r.kind in ("word", "class") or r.count < 5),
    "label_source = 'human'": lambda r: r.feature == 5,
    "label_source in ('human', 'x') and max > 0": lambda r: r.feature == 5,
    "label_source in ('human', '')": lambda r: r.feature == 5 or not r.label,
    "label_source != 'human'": lambda r: r.feature != 5,
    "not label_source = 'human'": lambda r: r.feature != 5,
    "list = 'mine'": lambda r: r.feature in (2, 3, 7),
    "list != 'mine'": lambda r: r.feature not in (2, 3, 7),
    "list like 'm%' or number = 1": lambda r: r.feature in (1, 2, 3, 7),
    "label = 'by ''hand'' \"and\" foot'": lambda r: r.feature == 5,
    "label like '%hand%'": lambda r: "hand" in r.label,
    "label not like '%happy%' AND NUMBER <> 7": None,
    "label not like '%happy%' and number <> 7": lambda r: "happy" not in r.label.casefold() and r.feature != 7,
    "number not in (1, 2, 3)": lambda r: r.feature not in (1, 2, 3),
    "max > 1 or max > 2 and max < 0": lambda r: r.max > 1,
    "mean>-1": lambda r: True,
}


def _records(db: FeatureDB) -> dict[int, FeatureRecord]:
    return {number: db.feature((SITE, number)) for number in range(32)}


@pytest.mark.parametrize("first", [4096, 8])
@pytest.mark.parametrize("text", [text for text, means in CONDITIONS.items() if means is not None])
def test_conditions_mean_what_they_say(searched: FeatureDB, text: str, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where more features match than the filter is applied to at first."""
    monkeypatch.setattr(search, "_FIRST", first)
    every = searched.search("the happy park", 99, by=BY)
    records = _records(searched)
    expected = [hit for hit in every if CONDITIONS[text](records[hit.feature])]
    assert searched.search("the happy park", 99, by=BY, where=text) == expected
    assert searched.search("the happy park", 3, by=BY, where=text) == expected[:3], "the condition comes before the top"


def test_sorting_and_paging(searched: FeatureDB) -> None:
    every = searched.search("the happy park", 99, by=BY)
    records = _records(searched)
    for name, value in (("density", "density"), ("max", "max"), ("number", "feature"), ("kind", "kind"), ("label", "label")):
        for word, reverse in (("", False), (" desc", True), (" ASC", False)):
            found = searched.search("the happy park", 99, by=BY, sort=name + word)
            values = [getattr(records[hit.feature], value) for hit in found]
            assert values == sorted(values, reverse=reverse)
            assert sorted(found, key=lambda hit: hit.feature) == sorted(every, key=lambda hit: hit.feature)
            assert searched.search("the happy park", 2, by=BY, sort=name + word, offset=3) == found[3:5]
    assert searched.search("the happy park", 2, by=BY, offset=1) == every[1:3]
    assert searched.search("the happy park", 99, by=BY, sort="score") == every
    assert searched.search("the happy park", 99, by=BY, offset=10**30) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("densty < 1", "no column 'densty'.*density"),
        ("density < 'a'", "needs a number"),
        ("kind = 1", "needs a text"),
        ("density like '1'", "has numbers"),
        ("density <", "at its end: a value"),
        ("density", "an operator"),
        ("", "a column"),
        ("density < 1 kind", "cannot be read at 'kind'"),
        ("(density < 1", r"'\)' is missing"),
        ("density < 1; drop table feature", "cannot be read at ';"),
        ("density < (select 1)", "a value belongs there"),
        ("(" * 60 + "density < 1" + ")" * 60, "levels"),
        ("not " * 5000, "characters"),
        (7, "not text"),
    ],
)
def test_mistakes_are_named(searched: FeatureDB, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        searched.search("happy", where=text)


@pytest.mark.parametrize("bad", [{"sort": "size"}, {"sort": "density up"}, {"sort": 3}, {"offset": -1}, {"offset": "x"}])
def test_bad_pages_are_named(searched: FeatureDB, bad: dict) -> None:
    with pytest.raises(ConfigError):
        searched.search("happy", **bad)


_SIGNS = ["(", ")", "<", "=", "'", "''", "'x'", ".1", "1e3", "1e999", "-", ";", "--", "\0"]
_PARTS = [*COLUMNS, "and", "or", "not", "in", "like", *_SIGNS]


@given(st.one_of(st.text(), st.lists(st.sampled_from(_PARTS)).map(" ".join)))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_a_condition_or_a_typed_error(searched: FeatureDB, text: str) -> None:
    try:
        parsed = condition(text)
    except ConfigError:
        return
    with sqlite3.connect(searched.path) as db:
        db.execute(f"SELECT id FROM feature WHERE {parsed.sql}", parsed.parameters).fetchall()
    searched.search("happy", where=text)
