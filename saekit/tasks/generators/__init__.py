"""Tasks that are generated for any tokenizer: `--task gen:indirect_object`, or `generate("indirect_object", encode)`.

A generator is a function of a random generator that returns a :class:`Draft`, and one row here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from saekit.errors import ConfigError
from saekit.plugins import Registry, resolve
from saekit.tasks.generators.draft import Draft
from saekit.tasks.rows import Encode, Row, Unfit, task_of, tokenised
from saekit.tasks.task import Task

__all__ = ["GENERATORS", "Draft", "Generator", "generate"]

_PATIENCE = 400
"""Draws in a row that bring no new prompt before a generator counts as exhausted, and 4 more for each prompt that there is."""


@dataclass(frozen=True)
class Generator:
    """A row of the registry.

    Attributes:
        target: the function, or `"package.module:name"` of it.
        summary: what the model has to know, one line.
    """

    target: str | Callable[[Random], Draft]
    summary: str


GENERATORS: Registry[Generator] = Registry(
    "generated task",
    {
        "indirect_object": Generator(
            "saekit.tasks.generators.indirect_object:draw", "the receiver is the one of two people who does not give"
        ),
        "greater_than": Generator("saekit.tasks.generators.greater_than:draw", "a period ends in a later year than it begins"),
        "induction": Generator("saekit.tasks.generators.induction:draw", "a list of words that begins again goes on as before"),
        "pronouns": Generator("saekit.tasks.generators.pronouns:draw", "the pronoun of a person with a gendered name"),
        "capitals": Generator("saekit.tasks.generators.capitals:draw", "the capital of a country"),
    },
)
"""Generated tasks by name."""


def generate(name: str, encode: Encode, n: int = 100, seed: int = 0) -> Task:
    """`n` different prompts of a generated task. A larger `n` gives the same prompts first.

    Drafts whose clean and corrupted prompts have different numbers of tokens are drawn again. Tokens with which both the answer
    and the foil begin become part of the prompts; of the rest, answer and foil keep the first token, in which they differ.

    Args:
        name: one of :data:`GENERATORS`.
        encode: token ids of a text, with BOS where texts begin with it: for example `lambda text: lm.text.ids([text])[0]`.
        n: number of prompts.
        seed: seed of the prompts.

    Raises:
        ConfigError: there is no such task, or it has fewer than `n` prompts that fit the tokenizer.
    """
    draw: Callable[[Random], Draft] = resolve(GENERATORS.find(name).target)
    if n < 1:
        raise ConfigError(f"n is {n}; it must be at least 1.")
    rows: dict[str, Row] = {}
    seen: set[tuple[str, ...]] = set()
    barren = drawn = 0
    reason = ""
    while len(rows) < n and barren < _PATIENCE + 4 * len(rows):
        draft = draw(Random(f"{seed}/{name}/{drawn}"))
        drawn, barren = drawn + 1, barren + 1
        if draft.texts in seen:
            continue
        seen.add(draft.texts)
        try:
            row = tokenised(draft.texts, encode, draft.spans)
        except Unfit as unfit:
            reason = f" The last one that did not: {unfit.what}."
            continue
        if draft.texts.clean not in rows:
            rows[draft.texts.clean] = row._replace(answer=row.answer[:1], foil=row.foil[:1])
            barren = 0
    if len(rows) < n:
        raise ConfigError(
            f"Of the prompts of gen:{name}, only {len(rows)} fit this tokenizer, and {n} are asked for.{reason}",
            f"Ask for at most {len(rows)}." if rows else "Choose another task, or write prompts to a file.",
        )
    return task_of(f"gen:{name}", list(rows.values()))
