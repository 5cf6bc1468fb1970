"""Mentions against a count by hand, word by word."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saekit.errors import ConfigError
from saekit.evaluate.steering.mentions import Mentions, Rate

WORDS = st.sampled_from(["cat", "Cat", "cats", "ice", "cream", "dog", "été", "don't", "concatenate"])


@given(st.lists(WORDS))
def test_single_words_are_counted_as_by_splitting(words: list[str]) -> None:
    mentions = Mentions(["cat", "ÉTÉ"])
    expected = sum(word.casefold() in ("cat", "été") for word in words)
    assert mentions.rate([" ".join(words)]) == Rate(expected, len(words))


def test_phrases_go_before_their_words_and_nothing_overlaps() -> None:
    text = "Ice cream, ice, ice-cream and an icecream."
    assert [text[a:b] for a, b in Mentions(["ice", "ice cream"]).spans(text)] == ["Ice cream", "ice", "ice"]


def test_words_are_matched_literally() -> None:
    assert Mentions(["a.c"]).spans("abc a.c") == [(4, 7)]


def test_rates_add_up() -> None:
    texts = ["the cat", "", "cat cat dog"]
    mentions = Mentions(["cat"])
    assert mentions.rate(texts) == sum((mentions.rate([text]) for text in texts), Rate(0, 0)) == Rate(3, 5)
    assert mentions.rate([]).value == 0


@pytest.mark.parametrize("words", [[], ["", " "]])
def test_a_concept_without_words_is_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError):
        Mentions(words)


@pytest.mark.parametrize("wrong", ["cat", 3, None, ["cat", 3], [b"cat"]])
def test_one_text_in_place_of_a_list_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="not a list of texts"):
        Mentions(wrong)
    with pytest.raises(ConfigError, match="not a list of texts"):
        Mentions(["cat"]).rate(wrong)
