"""The indirect object (Wang et al. 2211.00593): in "A and B ..., B gave a ball to", the answer is A.

In the corrupted prompt A gives, so the answer is B.
"""

from __future__ import annotations

from random import Random

from saekit.tasks.generators.draft import Draft
from saekit.tasks.generators.names import HE, SHE
from saekit.tasks.task import PromptTexts

_TEMPLATES = (
    "When {a} and {b} went to the {place}, {giver} gave a {gift} to",
    "Then {a} and {b} went to the {place}. {giver} gave a {gift} to",
    "After {a} and {b} went to the {place}, {giver} gave the {gift} to",
    "While {a} and {b} were at the {place}, {giver} gave a {gift} to",
    "Then {a} and {b} had a long day at the {place}, and {giver} gave a {gift} to",
    "When {a} and {b} were at the {place}, {giver} decided to give a {gift} to",
)
_PLACES = ("store", "park", "school", "garden", "house", "beach", "station", "office")
_GIFTS = ("ball", "book", "drink", "flower", "ring", "toy", "box", "cake")


def draw(random: Random) -> Draft:
    """One prompt. Spans: `receiver`, the answer's first mention; `giver`, the other person's first mention."""
    one, other = random.sample((*HE, *SHE), 2)
    giver, receiver = random.sample((one, other), 2)
    template, place, gift = random.choice(_TEMPLATES), random.choice(_PLACES), random.choice(_GIFTS)
    clean, corrupted = (template.format(a=one, b=other, place=place, gift=gift, giver=name) for name in (giver, receiver))
    return Draft(PromptTexts(clean, corrupted, f" {receiver}", f" {giver}"), {"receiver": receiver, "giver": giver})
