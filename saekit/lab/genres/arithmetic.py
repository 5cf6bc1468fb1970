"""Addition and subtraction of numbers up to 99. Every digit is a token, labelled with its role."""

from __future__ import annotations

from functools import cache, partial
from random import Random

from saekit.lab.concepts import words_concept
from saekit.lab.registry import Contrast, Genre, Prompt, Task, add_contrast, add_genre, add_task
from saekit.lab.splits import Split, is_heldout
from saekit.lab.text import Span, Text, fill, join

DIGITS = tuple("0123456789")
HELD_OUT_SHARE = 0.15
TWO_DIGITS = 0.8
ADDITIONS = 0.65

for _operand in ("operand", "result"):
    words_concept(f"{_operand}_tens", f"the tens digit of the {_operand} of a sum", DIGITS)
    words_concept(f"{_operand}_units", f"the units digit of the {_operand} of a sum", DIGITS)
words_concept("result_hundreds", "the hundreds digit of the result of a sum", ("1",))
words_concept("plus", "the plus sign of an addition", ("+",))
words_concept("minus", "the minus sign of a subtraction", ("-",))
words_concept("equals", "the equals sign before a result", ("=",))

_PLACES = ("units", "tens", "hundreds")


def compute(a: int, sign: str, b: int) -> int:
    """The result of `a` `sign` `b`."""
    return a + b if sign == "+" else a - b


@cache
def sum_is_heldout(a: int, sign: str, b: int) -> bool:
    """Whether `a` `sign` `b` is held out from the training documents of every genre: 15 % of all cases, except two single digits.

    An addition is held out in both orders, so that commuting a known one does not help.
    """
    pair = sorted((a, b)) if sign == "+" else [a, b]
    return max(a, b) > 9 and is_heldout("sum", sign, *pair, share=HELD_OUT_SHARE)


@cache
def sum_text(a: int, sign: str, b: int, result: int | None = None) -> Text:
    """`a` `sign` `b` `=` `result`, with the role of every digit. By default the result is the correct one."""
    pieces = (
        (str(a), "operand"),
        (sign, "plus" if sign == "+" else "minus"),
        (str(b), "operand"),
        ("=", "equals"),
        (str(compute(a, sign, b) if result is None else result), "result"),
    )
    text, spans = "", []
    for piece, role in pieces:
        for i, digit in enumerate(piece):
            place = f"_{_PLACES[len(piece) - 1 - i]}" if digit.isdigit() else ""
            spans.append(Span(len(text) + i, len(text) + i + 1, role + place))
        text += piece
    return Text(text, tuple(spans))


def draw_sum(rng: Random, split: Split, sign: str | None = None, two_digits: float = TWO_DIGITS) -> tuple[int, str, int]:
    """Operands up to 99 (of two digits with probability `two_digits`) and a sign, from `split`, with a result of at least 0."""
    while True:
        a, b = (rng.randint(10, 99) if rng.random() < two_digits else rng.randint(0, 9) for _ in range(2))
        drawn = sign or ("+" if rng.random() < ADDITIONS else "-")
        if drawn == "-" and b > a:
            a, b = b, a
        if sum_is_heldout(a, drawn, b) == (split == "heldout"):
            return a, drawn, b


_LISTS = ("{sums}.", "{sums}.", "{sums}.", "We know that {sums}.", "Here are some sums: {sums}.", "Some sums: {sums}.")


def write(rng: Random, split: Split) -> Text:
    """Seven to ten sums, usually without other text."""
    sums = [sum_text(*draw_sum(rng, split)) for _ in range(rng.randint(7, 10))]
    return fill(rng.choice(_LISTS), sums=join(sums))


def _prompt(rng: Random, split: Split, sign: str) -> Prompt:
    """A sum of two-digit numbers up to the equals sign. Corrupted: a sum whose result begins with another digit."""
    a, _, b = draw_sum(rng, split, sign, two_digits=1)
    right = other = str(compute(a, sign, b))
    while other[0] == right[0]:
        c, _, d = draw_sum(rng, split, sign, two_digits=1)
        other = str(compute(c, sign, d))
    known = join([sum_text(*draw_sum(rng, "train")) for _ in range(2)]).text
    return Prompt(f"{known} {a}{sign}{b}=", f"{known} {c}{sign}{d}=", right, other, case=(a, sign, b))


def result_is_right(prompt: Prompt, continuation: str) -> bool:
    """Whether the digits at the start of the continuation are exactly those of the answer."""
    digits = continuation.strip()
    return digits.startswith(prompt.answer) and not digits[len(prompt.answer) :][:1].isdigit()


def _signs(rng: Random, split: Split) -> tuple[str, str]:
    """A sum and a difference of the same operands."""
    added: list[str] = []
    subtracted: list[str] = []
    while len(added) < 6:
        a, _, b = draw_sum(rng, split, "-")
        if sum_is_heldout(a, "+", b) == (split == "heldout") or max(a, b) < 10:
            added.append(sum_text(a, "+", b).text)
            subtracted.append(sum_text(a, "-", b).text)
    return " ".join(added) + ".", " ".join(subtracted) + "."


add_genre(
    Genre(
        "arithmetic",
        "additions and subtractions of numbers up to 99, seven to ten a document",
        9,
        write,
        {
            "operands": f"0 to 99, {TWO_DIGITS:.0%} of two digits",
            "held out": "15 % of the operand pairs, additions in both orders",
        },
    )
)
for _name, _sign, _goal in (("addition", "+", 0.9), ("subtraction", "-", None)):
    add_task(
        Task(
            _name,
            "arithmetic",
            f"the result of a held-out {_name} of two-digit numbers, all digits of it",
            partial(_prompt, sign=_sign),
            at_least=_goal,
            check=result_is_right,
        )
    )
add_contrast(Contrast("plus_minus", "arithmetic", "the same operands added or subtracted", _signs))
