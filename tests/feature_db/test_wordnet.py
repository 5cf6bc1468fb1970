"""Kinds of things, opposites, inflected forms and grammatical classes of words."""

from __future__ import annotations

import pytest

from feature_db.meaning.categories import categories
from feature_db.meaning.parts_of_speech import classes_of, inflected
from feature_db.meaning.wordnet import wordnet


@pytest.mark.parametrize(
    ("phrase", "members", "others"),
    [
        ("vehicle", {"car", "truck", "bicycle"}, {"road", "driver"}),
        ("european country", {"france", "austria"}, {"japan", "paris"}),
        ("musical instrument", {"violin", "flute"}, {"music", "singer"}),
        ("day of the week", {"monday", "sunday"}, {"january"}),
        ("furniture", {"chair", "table", "bed"}, {"kitchen"}),
    ],
)
def test_kinds(phrase: str, members: set[str], others: set[str]) -> None:
    found = {word for word, _ in wordnet().kinds(phrase)}
    assert members <= found and not others & found


def test_a_frequent_sense_weighs_more() -> None:
    found = wordnet().kinds("fruit")
    assert found["apple", "n"] > 2 * found["date", "n"], "a date is seldom a fruit"
    assert wordnet().kinds("xyzzy") == {} == wordnet().kinds("") == wordnet().kinds("猫\x00")


def test_opposites_have_their_likes() -> None:
    assert {"cold", "icy", "chilly"} <= wordnet().opposites("hot") and "warm" not in wordnet().opposites("hot")
    assert wordnet().opposites("table") == wordnet().opposites("xyzzy") == set()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("vehicles", [(["vehicle"], 1.0)]),
        ("kinds of sport", [(["sport"], 1.0)]),
        ("parts of the body", [(["body part"], 1.0)]),
        ("days of the week", [(["day of the week"], 1.0)]),
        ("moon and stars", [(["moon", "star"], 1.0)]),
        ("grumpy old mice", [(["mouse"], 1 / 3)]),
        ("the", []),
        ("", []),
        ("xyzzy", []),
    ],
)
def test_categories_that_a_query_names(query: str, expected: list[tuple[list[str], float]]) -> None:
    assert categories(query) == [(phrases, pytest.approx(share)) for phrases, share in expected]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("dogs mice children houses ladies teeth", "plural"),
        ("walked ran saw felt found was said tried", "past"),
        ("eats runs goes is", "third_person"),
        ("running sleeping making", "ing"),
        ("happy red bigger", "adjective"),
        ("quickly happily", "adverb"),
        ("the of she with", "function"),
        ("dog table happiness", "noun"),
    ],
)
def test_grammatical_classes(words: str, name: str) -> None:
    for word in words.split():
        assert name in classes_of(word), word


def test_words_without_a_class() -> None:
    for word in ("", "x", "zzyzx", "猫", "12", "!", "né"):
        assert classes_of(word) == frozenset(), word
    assert "plural" not in classes_of("glass") | classes_of("dog") and "past" not in classes_of("walk") | classes_of("red")


def test_inflected_forms() -> None:
    assert {"mouse", "mice"} <= set(inflected("mouse", "n")) and {"ran", "runs", "running"} <= set(inflected("run", "v"))
    assert {"cities", "city"} <= set(inflected("city", "n")) and {"making", "made"} <= set(inflected("make", "v"))
    assert {"happier", "happiest"} <= set(inflected("happy", "a"))
