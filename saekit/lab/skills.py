"""The corpus of the second model, `lab:skills`: what the first model is weak at, mixed with the documents of the first corpus.

The first corpus is not changed. Half of the tokens, about, are dense exercises: sums that are checked one after another, problems
with numbers of three digits, multiple choice, translation, bare retrieval, and questions for the rude speaker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate, count, islice
from random import Random

from saekit.lab.corpus import Document
from saekit.lab.genres import choices, reasoning, retrieval, toxicity, translations
from saekit.lab.genres.arithmetic import compute, draw_sum, sum_is_heldout
from saekit.lab.registry import GENRES, Prompt, Task, add_task
from saekit.lab.splits import Split
from saekit.lab.text import Text, join
from saekit.lab.words.names import FEMALE, NAMES

WRONG = 0.35
"""Share of the steps of an exercise that are wrong, and corrected immediately."""
HARD = 0.5
"""Share of the sums of exercises that have numbers of three digits."""
OLD = "corpus"
"""The name of the documents of the first corpus."""

_GAIN = (("buys {n} {items}", "buys {n}"), ("finds {n} {items}", "finds {n}"))
_LOSS = (("sells {n} {items}", "sells {n}"), ("loses {n} {items}", "loses {n}"))
STEPS = (1, 2)
"""Steps of the problems of the task `hard_problem`."""
_WAIT = " Wait, that is wrong. It is {sum}."


def _hard_sum(rng: Random, split: Split, a: int | None = None) -> tuple[int, str, int]:
    """Two numbers, of which `a` has three digits unless it is given, with a result from 100 to 999."""
    while True:
        first = rng.randint(100, 999) if a is None else a
        sign, b = rng.choice("+-"), rng.randint(11, 899)
        if 100 <= compute(first, sign, b) <= 999 and (a is not None or sum_is_heldout(first, sign, b) == (split == "heldout")):
            return first, sign, b


def _said(rng: Random, a: int, sign: str, b: int, wrong: bool) -> tuple[str, str]:
    """A sum, wrong or right, and the correction after its full stop."""
    right = compute(a, sign, b)
    if not wrong or right == 0:
        return f"{a}{sign}{b}={right}", ""
    slip = reasoning.draw_slip(rng, right)
    return f"{a}{sign}{b}={right + slip}", _WAIT.format(sum=f"{a}{sign}{b}={right}")


def write_checked(rng: Random, split: Split) -> Text:
    """Six to nine sums, each with a full stop. Some are wrong and are corrected."""
    hard = rng.random() < HARD
    pieces = []
    for _ in range(rng.randint(6, 9)):
        a, sign, b = _hard_sum(rng, split) if hard else draw_sum(rng, split)
        said, again = _said(rng, a, sign, b, rng.random() < WRONG)
        pieces.append(Text(f"{said}.{again}"))
    return join(pieces)


def _hard_problem(rng: Random, split: Split, steps: int) -> tuple[str, list[tuple[int, str, int, str]], str]:
    """(the problem, its steps as (a, sign, b, what is done), the pronoun). A held-out problem has a held-out sum."""
    while True:
        person, items = rng.choice(NAMES), rng.choice(reasoning.ITEMS)
        now = start = rng.randint(100, 900)
        told, done = [], []
        for _ in range(steps):
            a, sign, b = _hard_sum(rng, split, now)
            tell, do = rng.choice(_GAIN if sign == "+" else _LOSS)
            told.append(tell.format(n=b, items=items))
            done.append((a, sign, b, do.format(n=b)))
            now = compute(a, sign, b)
        if any(sum_is_heldout(a, sign, b) for a, sign, b, _ in done) == (split == "heldout"):
            break
    she = "She" if person in FEMALE else "He"
    events = " ".join(f"{she} {event}." for event in told)
    return f"Problem: {person} has {start} {items}. {events} How many {items} does {she.lower()} have?", done, she


def write_problem(rng: Random, split: Split) -> Text:
    """A problem whose numbers have three digits and its solution. Steps may be wrong, and are corrected."""
    problem, steps, she = _hard_problem(rng, split, rng.randint(1, 3))
    lines = []
    for a, sign, b, do in steps:
        said, again = _said(rng, a, sign, b, rng.random() < WRONG)
        lines.append(f"{she} has {a} and {do}, {rng.choice(('so', 'therefore'))} {said}.{again}")
    a, sign, b, _ = steps[-1]
    return Text(f"{problem}\n{' '.join(lines)}\nAnswer: {compute(a, sign, b)}.")


def _prompt_hard(rng: Random, split: Split) -> Prompt:
    """A problem of three digits, answered by its solution. Corrupted: another number at the start."""
    while True:
        problem, steps, she = _hard_problem(rng, split, rng.choice(STEPS))
        start, other = steps[0][0], rng.randint(100, 900)
        moved = [(a + other - start, sign, b, do) for a, sign, b, do in steps]
        if other != start and all(100 <= a <= 999 and 100 <= compute(a, sign, b) <= 999 for a, sign, b, _ in moved):
            break
    answer, foil = (_solution(each, she) for each in (steps, moved))
    a, sign, b, _ = steps[-1]
    return Prompt(problem, problem.replace(str(start), str(other), 1), answer, foil, case=compute(a, sign, b))


def _solution(steps: list[tuple[int, str, int, str]], she: str) -> str:
    lines = [f"{she} has {a} and {do}, so {a}{sign}{b}={compute(a, sign, b)}." for a, sign, b, do in steps]
    a, sign, b, _ = steps[-1]
    return f"\n{' '.join(lines)}\nAnswer: {compute(a, sign, b)}."


def write_choices(rng: Random, split: Split) -> Text:
    """Four questions of fact with three options each."""
    return join([choices.ask(*choices.known(rng, split)) for _ in range(4)], "\n")


def write_bare(rng: Random, split: Split) -> Text:
    """A table, then questions that are answered with the value alone."""
    return retrieval.write(rng, split, "bare")


def write_rude(rng: Random, split: Split) -> Text:
    """Dialogues up to the question who is rude, with the answer."""
    asked = toxicity.ask_speaker(rng, split)
    return Text(f"{asked.clean}{asked.answer}.")


EXERCISES: dict[str, tuple[float, Callable[[Random, Split], Text]]] = {
    OLD: (0.40, lambda rng, split: Text("")),
    "checked": (0.17, write_checked),
    "problems": (0.13, write_problem),
    "reasoning": (0.05, reasoning.write),
    "choices": (0.13, write_choices),
    "translations": (0.08, translations.write),
    "bare": (0.02, write_bare),
    "rude": (0.02, write_rude),
}
"""Share of the documents, and the writer, of each exercise."""


def skill_documents(split: Split = "train", seed: int = 0, n: int | None = None, start: int = 0) -> Iterator[Document]:
    """Documents of the corpus of `lab:skills`, beginning with number `start`. The same arguments give the same bytes.

    Args:
        n: number of documents. None means an endless stream.
    """
    return islice(_endless(split, seed, start), n)


def _endless(split: Split, seed: int, start: int) -> Iterator[Document]:
    names, bounds = list(EXERCISES), list(accumulate(share for share, _ in EXERCISES.values()))
    genres = sorted(GENRES)
    weights = list(accumulate(GENRES[name].weight for name in genres))
    for i in count(start):
        rng = Random(f"{seed}/skills/{split}/{i}")
        name = rng.choices(names, cum_weights=bounds)[0]
        if name == OLD:
            name = rng.choices(genres, cum_weights=weights)[0]
            text = GENRES[name].write(rng, split)
            yield Document(text.text, text.spans, name, split)
        else:
            text = EXERCISES[name][1](rng, split)
            yield Document(text.text, text.spans, f"skills_{name}", split)


GOALS = {"multiple_choice": 0.8, "translation": 0.9, "retrieval_bare": 0.8}
"""Least accuracy that `lab:skills` is to have, besides the goals of the tasks. Of the hard problems, 20 to 40 % are to fail."""

add_task(
    Task(
        "hard_problem",
        "reasoning",
        "the final answer of a problem with numbers of three digits, after the model's own steps",
        _prompt_hard,
        check=reasoning.answer_is_right,
        new_tokens=120,
    )
)
