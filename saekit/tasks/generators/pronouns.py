"""Gendered pronouns (Mathwin et al. 2023): after "So Mary is a really great friend, isn't", the pronoun is that of the name.

In the corrupted prompt the name has the other gender.
"""

from __future__ import annotations

from random import Random

from saekit.tasks.generators.draft import Draft
from saekit.tasks.generators.names import HE, SHE
from saekit.tasks.task import PromptTexts

_TEMPLATES = (
    "{name} was very happy today because",
    "{name} went home early because",
    "{name} was tired, so",
    "{name} said that",
    "One day {name} was sad because",
    "{name} was so good that",
    "Then {name} went to the park, and",
    "{name} looked up when",
    "{name} found a big box. Then",
    "{name} was alone in the house, but",
)


def draw(random: Random) -> Draft:
    """One prompt. Span: `name`, the person."""
    template, names = random.choice(_TEMPLATES), (random.choice(HE), random.choice(SHE))
    own = random.randint(0, 1)
    pronouns = (" he", " she")
    clean, corrupted = (template.format(name=names[i]) for i in (own, 1 - own))
    return Draft(PromptTexts(clean, corrupted, pronouns[own], pronouns[1 - own]), {"name": names[own]})
