"""Word problems with solutions step by step. Some steps are wrong and are corrected immediately."""

from __future__ import annotations

import re
from random import Random
from typing import NamedTuple

from saekit.lab.concepts import pattern_concept, words_concept
from saekit.lab.genres.arithmetic import compute, sum_is_heldout, sum_text
from saekit.lab.registry import Contrast, Genre, Prompt, Task, add_contrast, add_genre, add_task
from saekit.lab.splits import Split
from saekit.lab.text import Text, fill, join, word
from saekit.lab.words.names import FEMALE, MALE, NAMES, name

WRONG = 0.4
ITEMS = ("books", "letters", "keys", "lamps", "bottles", "cards", "stones", "balls", "tickets", "pens")

_SUM = r"\d{1,2}[+-]\d{1,2}=\d{1,2}"
words_concept("counted_item", "what is counted in a problem", ITEMS)
words_concept("so", "the marker of a step's result: so", ("so",))
words_concept("therefore", "the marker of a step's result: therefore", ("therefore",))
words_concept("wait", "the marker of a mistake noticed: wait", ("wait",))
pattern_concept("wrong_step", "a sum whose result is wrong", _SUM)
pattern_concept("corrected_step", "a sum done again after a mistake", _SUM)
pattern_concept("final_answer", "the number that a solution ends with", r"\d{1,2}")

# Events: the sign, the phrase of the problem, the phrase of the solution.
_EVENTS = (
    ("+", "{other} gives {object} {n} {items}.", "gets {n}"),
    ("+", "{subject} buys {n} {items}.", "buys {n}"),
    ("+", "{subject} finds {n} {items}.", "finds {n}"),
    ("-", "{subject} gives {n} {items} to {other}.", "gives away {n}"),
    ("-", "{subject} sells {n} {items}.", "sells {n}"),
    ("-", "{subject} loses {n} {items}.", "loses {n}"),
)


class _Step(NamedTuple):
    a: int
    sign: str
    b: int
    told: str
    done: str

    @property
    def result(self) -> int:
        return compute(self.a, self.sign, self.b)


class Problem(NamedTuple):
    """A person with a number of items, and events that change the number."""

    person: str
    other: str
    items: str
    start: int
    steps: tuple[_Step, ...]

    @property
    def result(self) -> int:
        return self.steps[-1].result

    def told(self) -> Text:
        """The text of the problem, with its question."""
        she, her = ("She", "her") if self.person in FEMALE else ("He", "him")
        items = word(self.items, "counted_item")
        others = {"+": name(self.other).labelled("giver"), "-": name(self.other).labelled("receiver")}
        told = [fill("{person} has {n} {items}.", person=name(self.person), n=str(self.start), items=items)]
        told += [
            fill(step.told, subject=she, object=her, other=others[step.sign], n=str(step.b), items=items) for step in self.steps
        ]
        question = fill("How many {items} does {pronoun} have?", items=items, pronoun=she.lower())
        return fill("Problem: {told} {question}", told=join(told), question=question)

    def solved(self, markers: tuple[str, ...], wrong: int | None = None, slip: int = 0) -> list[Text]:
        """The sentences of the solution, each with a marker. In step `wrong`, the result is off by `slip` and then corrected."""
        she = "She" if self.person in FEMALE else "He"
        sentences = []
        for i, (step, marker) in enumerate(zip(self.steps, markers, strict=True)):
            right = sum_text(step.a, step.sign, step.b)
            slipped = sum_text(step.a, step.sign, step.b, step.result + slip).labelled("wrong_step") if i == wrong else right
            sentences.append(
                fill(
                    "{she} has {a} and {done}, {marker} {sum}.",
                    she=she,
                    a=str(step.a),
                    done=step.done.format(n=step.b),
                    marker=word(marker, marker),
                    sum=slipped,
                )
            )
            if i == wrong:
                again = right.labelled("corrected_step")
                sentences.append(fill("{wait}, that is wrong. It is {sum}.", wait=word("Wait", "wait"), sum=again))
        return sentences

    def answered(self) -> Text:
        """The last line: the final answer."""
        return fill("Answer: {n}.", n=word(str(self.result), "final_answer"))


def _step(rng: Random, now: int) -> _Step:
    while True:
        sign, told, done = rng.choice(_EVENTS)
        n = rng.randint(2, 50 if rng.random() < 0.5 else 9)
        if 1 <= compute(now, sign, n) <= 99:
            return _Step(now, sign, n, told, done)


def make_problem(rng: Random, split: Split) -> Problem:
    """A problem of two or three steps with numbers up to 99. Held-out problems contain a held-out sum, others do not."""
    while True:
        person = rng.choice(NAMES)
        other = rng.choice(MALE if person in FEMALE else FEMALE)
        start = now = rng.randint(3, 60)
        steps = []
        for _ in range(rng.randint(2, 3)):
            steps.append(_step(rng, now))
            now = steps[-1].result
        if any(sum_is_heldout(step.a, step.sign, step.b) for step in steps) == (split == "heldout"):
            return Problem(person, other, rng.choice(ITEMS), start, tuple(steps))


def draw_slip(rng: Random, result: int) -> int:
    """The error of a wrong result: 1, 2 or 10, up or down. The number of digits stays the same."""
    fitting = [slip for slip in (-10, -2, -1, 1, 2, 10) if result + slip > 0 and len(str(result + slip)) == len(str(result))]
    return rng.choice(fitting)


def _markers(rng: Random, problem: Problem) -> tuple[str, ...]:
    return tuple(rng.choice(("so", "therefore")) for _ in problem.steps)


def write(rng: Random, split: Split) -> Text:
    """A problem, its solution and the answer. Many solutions contain a wrong step and its correction."""
    problem = make_problem(rng, split)
    wrong = rng.randrange(len(problem.steps)) if rng.random() < WRONG else None
    slip = draw_slip(rng, problem.steps[wrong].result) if wrong is not None else 0
    solved = join(problem.solved(_markers(rng, problem), wrong, slip))
    return join([problem.told(), solved, problem.answered()], "\n")


def _prompt_answer(rng: Random, split: Split) -> Prompt:
    """The problem, answered by the solution. Corrupted: another number at the start, with the same number of digits."""
    while True:
        problem, other = make_problem(rng, split), make_problem(rng, split)
        changed = _restarted(problem, other.start)
        if changed and len(str(problem.start)) == len(str(changed.start)) and problem.start != changed.start:
            break
    markers = _markers(rng, problem)
    answer, foil = (join([join(p.solved(markers)), p.answered()], "\n").text for p in (problem, changed))
    return Prompt(problem.told().text, changed.told().text, f"\n{answer}", f"\n{foil}", case=problem.result)


def _restarted(problem: Problem, start: int) -> Problem | None:
    """The same problem with another number at the start, such that every count stays within 1 to 99."""
    steps, now = [], start
    for step in problem.steps:
        steps.append(step._replace(a=now))
        now = steps[-1].result
        if not 1 <= now <= 99:
            return None
    return problem._replace(start=start, steps=tuple(steps))


def answer_is_right(prompt: Prompt, continuation: str) -> bool:
    """Whether the first final answer of the continuation is the correct result."""
    answer = re.search(r"Answer: (\d+)", continuation)
    return answer is not None and int(answer[1]) == prompt.case


def _prompt_correction(rng: Random, split: Split) -> Prompt:
    """A solution up to a wrong step before its last. Corrupted: the step is correct, and the next step follows."""
    problem = make_problem(rng, split)
    at = rng.randrange(len(problem.steps) - 1)
    slip, markers = draw_slip(rng, problem.steps[at].result), _markers(rng, problem)
    clean, corrupted = (
        join([problem.told(), join(problem.solved(markers, wrong, slip)[: at + 1])], "\n").text for wrong in (at, None)
    )
    return Prompt(clean, corrupted, " Wait", " She" if problem.person in FEMALE else " He")


def _corrected(rng: Random, split: Split) -> tuple[str, str]:
    """Solutions of the same problem with a correction and without one."""
    problem = make_problem(rng, split)
    at, markers = rng.randrange(len(problem.steps)), _markers(rng, problem)
    slip = draw_slip(rng, problem.steps[at].result)
    corrected, straight = (
        join([problem.told(), join(problem.solved(markers, wrong, slip)), problem.answered()], "\n").text for wrong in (at, None)
    )
    return corrected, straight


def _marked(rng: Random, split: Split) -> tuple[str, str]:
    """The same solution with each of two markers."""
    problem = make_problem(rng, split)
    therefore, so = (
        join([problem.told(), join(problem.solved((marker,) * len(problem.steps))), problem.answered()], "\n").text
        for marker in ("therefore", "so")
    )
    return therefore, so


add_genre(
    Genre(
        "reasoning",
        "a person's items are counted step by step; the steps are sums",
        3,
        write,
        {"a wrong step, corrected": WRONG, "markers": "so or therefore, each half the time; Wait before a correction"},
    )
)
add_task(
    Task(
        "reasoning_answer",
        "reasoning",
        "the final answer after the model's own steps",
        _prompt_answer,
        check=answer_is_right,
        new_tokens=80,
    )
)
add_task(Task("correction", "reasoning", "a wrong step is noticed", _prompt_correction))
add_contrast(Contrast("corrected_straight", "reasoning", "a solution with a corrected mistake, or without mistakes", _corrected))
add_contrast(Contrast("therefore_so", "reasoning", "results marked with therefore or with so", _marked))
