"""Greater-than (Hanna et al. 2305.00586): "The war lasted from the year 1741 to the year" is followed by a later year.

In the corrupted prompt the period begins in the year 01 of the century. The digits that answer and foil share become part of the
prompts, as "to the year 17", however the tokenizer splits numbers. The tens of the years differ, so one digit tells them apart.
"""

from __future__ import annotations

from random import Random

from saekit.tasks.generators.draft import Draft
from saekit.tasks.task import PromptTexts

_NOUNS = ("war", "siege", "voyage", "project", "reign", "strike", "journey", "famine", "campaign", "study", "trial", "expedition")
_TEMPLATES = (
    "The {noun} lasted from the year {start} to the year",
    "The {noun} began in the year {start} and ended in the year",
    "The {noun} of the year {start} was over in the year",
)


def draw(random: Random) -> Draft:
    """One prompt. Span: `start`, the year in which the period begins."""
    century, noun, template = random.randint(11, 18), random.choice(_NOUNS), random.choice(_TEMPLATES)
    tens = random.randint(2, 8)
    start, later, earlier = (
        f"{century}{digit}{random.randint(low, 9)}"
        for digit, low in ((tens, 1), (random.randint(tens + 1, 9), 0), (random.randint(1, tens - 1), 0))
    )
    clean, corrupted = (template.format(noun=noun, start=year) for year in (start, f"{century}01"))
    return Draft(PromptTexts(clean, corrupted, f" {later}", f" {earlier}"), {"start": start})
