"""First names, shared by every genre that has people in it."""

from __future__ import annotations

from saekit.lab.concepts import words_concept
from saekit.lab.text import Text, word

MALE = (
    "Tom",
    "John",
    "Paul",
    "Peter",
    "David",
    "Daniel",
    "Jack",
    "Adam",
    "Ben",
    "Leo",
    "Max",
    "Sam",
    "Luke",
    "Simon",
    "Oscar",
    "Victor",
    "Martin",
    "Robert",
    "Felix",
    "Hugo",
)
FEMALE = (
    "Anna",
    "Mary",
    "Kim",
    "Lucy",
    "Emma",
    "Sarah",
    "Julia",
    "Laura",
    "Maria",
    "Nina",
    "Clara",
    "Eva",
    "Alice",
    "Sophie",
    "Helen",
    "Jane",
    "Kate",
    "Lisa",
    "Nora",
    "Ruth",
)
NAMES = MALE + FEMALE

words_concept("name", "a first name", NAMES)
words_concept("male_name", "a man's first name", MALE)
words_concept("female_name", "a woman's first name", FEMALE)

_LABELLED = {text: word(text, "name", "male_name" if text in MALE else "female_name") for text in NAMES}


def name(text: str) -> Text:
    """The name `text`, labelled."""
    return _LABELLED[text]
