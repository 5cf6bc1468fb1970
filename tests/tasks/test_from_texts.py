"""Tasks drawn from texts: which places count, and that only the deciding word differs."""

from __future__ import annotations

import re

import pytest

from saekit.errors import ConfigError
from saekit.lm import LanguageModel
from saekit.tasks.generators.texts import KINDS, drawn_from, pronouns, repeated_objects

PERSON = "It rained. Lily went to the park with Spot. She saw a duck."
THING = "Tim saw a ball in the park. He wanted to kick the ball. His dog had an idea."
ANOTHER = "There was a frog. The frog was loud."
TEXTS = [PERSON, THING, ANOTHER, "Nothing happened.", "Tom was sad, so he cried."]


def words(text: str) -> list[int]:
    """A tokenizer of words with the space before them, which needs no model; a token is its hash."""
    return [hash(token) & 0xFFFF for token in re.findall(r" ?\w+|\S", text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (PERSON, [("Lily went to the park with Spot.", "Lily", " She")]),
        ("Tom was sad, so he cried. He went home.", [("Tom was sad, so", "Tom", " he")]),  # the second follows a gendered word
        ("The boy Tom ran. He fell.", []),  # the boy tells the gender too
        ("Tom and Lily ran. He fell.", []),  # two people
        ("Tom ran. She fell.", []),  # she is somebody else
        ("The dog ran. He fell.", []),
    ],
)
def test_places_of_pronouns(text: str, found: list[tuple[str, str, str]]) -> None:
    places = list(pronouns(text, frozenset()))
    assert [each[:3] for each in places] == found
    for place in places:
        assert set(place.foils.values()) == {{" She": " He", " he": " she"}[place.answer]}
        assert place.word not in place.foils


def test_places_of_repeated_objects() -> None:
    others = frozenset({"ball", "frog", "apple", "park", "idea"})
    (place,) = repeated_objects(THING, others)
    assert place[:3] == ("Tim saw a ball in the park. He wanted to kick the", "ball", " ball")
    assert place.foils == {"frog": " frog"}  # the park is in the prompt, and "a" is not followed by a vowel
    assert not list(repeated_objects("Tim saw a big ball. The big dog ran.", others))  # no noun is named twice
    assert not list(repeated_objects("The ball. Tim saw a ball.", others))


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_deciding_word_differs(kind: str) -> None:
    task = drawn_from(kind, TEXTS, words)
    assert len(task) == {"pronouns": 3, "repeated_objects": 2}[kind] and task.name == kind  # at most one from each text
    for i, texts in enumerate(task.texts):
        start, end = task.spans["word"][i]
        clean, corrupted = task.clean[i], task.corrupted[i]
        assert clean[:start] == corrupted[:start] and clean[start] != corrupted[start] and clean[end:] == corrupted[end:]
        assert task.answers[i] == (words(texts.answer)[0],) and task.foils[i] == (words(texts.foil)[0],)
    assert task == drawn_from(kind, TEXTS, words) and len(drawn_from(kind, TEXTS, words, n=1)) == 1


def test_a_real_tokenizer(stories_lm: LanguageModel) -> None:
    task = drawn_from("pronouns", TEXTS, lambda text: stories_lm.text.ids([text])[0])
    assert len(task) == 2 and task.clean_BT.shape == task.corrupted_BT.shape


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'pronouns'"):
        drawn_from("pronoun", TEXTS, words)
    with pytest.raises(ConfigError, match=r"5 texts have 3 prompts .* 9 are asked for.*at most 3"):
        drawn_from("pronouns", TEXTS, words, n=9)
    with pytest.raises(ConfigError, match="Give more texts"):
        drawn_from("pronouns", ["Nothing happened."], words)
