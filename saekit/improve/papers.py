"""The survey's Table 2 as data: the papers by object, locating method, steering method and scenario."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from saekit.errors import ConfigError
from saekit.plugins import nearest

FIELDS = ("object", "locate", "steer", "scenario")
"""The fields by which papers are chosen."""


@dataclass(frozen=True)
class Paper:
    """A row of Table 2.

    Attributes:
        number: from 1, in the order of the table.
        object, locate, steer: the triple that the survey gives; "-" where it leaves a part open.
    """

    number: int
    theme: str
    scenario: str
    title: str
    object: str
    locate: str
    steer: str
    venue: str
    year: int
    link: str

    @property
    def triple(self) -> tuple[str, str, str]:
        """(object, locating method, steering method)."""
        return self.object, self.locate, self.steer


@cache
def papers() -> tuple[Paper, ...]:
    """All rows of the table."""
    text = resources.files("saekit.improve").joinpath("papers.csv").read_text("utf-8")
    rows = csv.DictReader(text.splitlines())
    return tuple(
        Paper(number, **{key: value for key, value in row.items() if key != "year"}, year=int(row["year"]))
        for number, row in enumerate(rows, start=1)
    )


def find_papers(where: Mapping[str, str] | None = None, words: str = "") -> list[Paper]:
    """The papers whose fields contain what is asked for, in any case.

    Args:
        where: by field of :data:`FIELDS`, a part of its value: {"object": "neuron", "steer": "vector"}.
        words: words that the title contains.

    Raises:
        ConfigError: there is no such field, or no paper has such a value.
    """
    found = list(papers())
    for name, part in (where or {}).items():
        if name not in FIELDS:
            raise ConfigError(f"Papers have no field {name!r}.", nearest(name, FIELDS))
        known = sorted({getattr(paper, name) for paper in papers()})
        if not any(_like(part, value) for value in known):
            raise ConfigError(f"No paper has the {name} {part!r}.", nearest(part, known))
        found = [paper for paper in found if _like(part, getattr(paper, name))]
    return [paper for paper in found if all(_like(word, paper.title) for word in words.split())]


def paper_of(number: int) -> Paper:
    """The paper of a number.

    Raises:
        ConfigError: there is none.
    """
    if not 1 <= number <= len(papers()):
        raise ConfigError(f"There is no paper {number}.", f"The numbers are 1 to {len(papers())}.")
    return papers()[number - 1]


def _like(part: str, value: str) -> bool:
    return part.casefold() in value.casefold()
