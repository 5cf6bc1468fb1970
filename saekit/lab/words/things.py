"""Everyday things, places, people and colours of the genres that are about structure rather than about a topic."""

from __future__ import annotations

from saekit.lab.concepts import words_concept
from saekit.lab.text import Text, word

GIFTS = ("book", "ball", "ring", "letter", "coat", "lamp", "bag", "drink", "pen", "map", "ticket", "camera")
PLACES = (
    "store",
    "school",
    "park",
    "office",
    "station",
    "library",
    "museum",
    "market",
    "hotel",
    "church",
    "theater",
    "airport",
)
# Things and people with plurals: the subjects and attractors of number agreement.
THING_PLURALS = {
    "book": "books",
    "letter": "letters",
    "coat": "coats",
    "lamp": "lamps",
    "bag": "bags",
    "key": "keys",
    "box": "boxes",
    "picture": "pictures",
    "chair": "chairs",
    "table": "tables",
    "door": "doors",
    "window": "windows",
    "clock": "clocks",
    "basket": "baskets",
    "bottle": "bottles",
    "mirror": "mirrors",
}
PERSON_PLURALS = {
    "boy": "boys",
    "girl": "girls",
    "friend": "friends",
    "neighbor": "neighbors",
    "guest": "guests",
    "student": "students",
    "brother": "brothers",
    "sister": "sisters",
}
_OTHERS = (
    "bed bell bike brush button candle carpet chain curtain desk drum engine fence glove hammer hat jacket ladder needle paper "
    "pillow pipe pocket radio roof rope scarf shirt soap sofa stone string towel umbrella wagon wheel"
)
THINGS = tuple(dict.fromkeys((*GIFTS, *THING_PLURALS, *_OTHERS.split())))
COLORS = ("red", "blue", "green", "yellow", "black", "white", "brown", "gray")

words_concept("color", "a color", COLORS)
words_concept("public_place", "a public place", PLACES)


def color(text: str) -> Text:
    """The color `text`, labelled."""
    return word(text, "color")


def place(text: str) -> Text:
    """The public place `text`, labelled."""
    return word(text, "public_place")
