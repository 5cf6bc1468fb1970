"""Induction (Olsson et al. 2209.11895): a list of words begins a second time, and goes on as the first time.

In the corrupted prompt the first list has another word at the place of the answer.
"""

from __future__ import annotations

from random import Random

from saekit.tasks.generators.draft import Draft
from saekit.tasks.task import PromptTexts

_WORDS = (
    "apple", "bird", "book", "box", "bread", "cat", "chair", "cloud", "dog", "door", "egg", "fish", "flower", "hat",
    "house", "king", "lamp", "leaf", "moon", "mouse", "paper", "rain", "river", "road", "rock", "salt", "ship", "snow",
    "star", "sun", "table", "tree", "water", "wind", "window", "wood",
)  # fmt: skip


def draw(random: Random) -> Draft:
    """One prompt. Spans: `first`, the answer in the first list; `before`, the word before it there."""
    length = random.randint(6, 9)
    *words, other = random.sample(_WORDS, length + 1)
    at = random.randint(2, length - 2)
    replaced = [*words[:at], other, *words[at + 1 :]]
    clean, corrupted = (f"List: {' '.join(first)}. {' '.join(words[:at])}" for first in (words, replaced))
    spans = {"first": words[at], "before": words[at - 1]}
    return Draft(PromptTexts(clean, corrupted, f" {words[at]}", f" {other}"), spans)
