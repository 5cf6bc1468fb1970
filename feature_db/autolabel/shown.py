"""Examples as text for a language model: strong tokens marked, with whole numbers for activations (Bills et al. 2023)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from feature_db.records import Example, FeatureRecord

THRESHOLD = 0.3
"""Share of an example's largest activation above which a token is marked."""
_LISTED = 20  # marked tokens of an example that are listed with their activation

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"  # no characters: they stand for the marks while the text is escaped
_WITHOUT = str.maketrans("", "", _OPEN + _CLOSE)
_BREAK = re.compile(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_LIKE_MARKS = re.compile("|".join(rf"{each}(?=[{each}{_OPEN}{_CLOSE}])|(?<=[{each}{_OPEN}{_CLOSE}]){each}" for each in "<>"))


def marks(values: Sequence[float]) -> list[bool]:
    """Which tokens of an example are marked."""
    least = THRESHOLD * max(values, default=0.0)
    return [value > least for value in values]


def marked(tokens: Sequence[str], which: Sequence[bool]) -> str:
    """The text of an example in one line, with neighbouring marked tokens together between << and >>.

    What looks like these marks in the text itself is escaped: `\\<\\<`.
    """
    parts = []
    for strong, group in groupby(zip(tokens, which), key=lambda pair: pair[1]):
        text = "".join(token for token, _ in group).translate(_WITHOUT)
        parts.append(f"{_OPEN}{text}{_CLOSE}" if strong else text)
    return quoted("".join(parts)).replace(_OPEN, "<<").replace(_CLOSE, ">>")


def levels(values: Sequence[float], largest: float) -> list[int]:
    """Activations as whole numbers: 0 where the feature does not fire, else 1 to 10; 10 is its largest."""
    return [max(1, min(10, round(10 * value / largest))) if value > 0 and largest > 0 else 0 for value in values]


def shown(example: Example, largest: float, number: int) -> str:
    """An example in two lines: its text, and the marked tokens with their activation."""
    which = marks(example.values)
    pairs = [
        f"({one_line(token)!r}, {level})"
        for token, level, strong in zip(example.tokens, levels(example.values, largest), which)
        if strong
    ]
    more = ", ..." if len(pairs) > _LISTED else ""
    return f"Text {number}: {marked(example.tokens, which)}\nActivations: {', '.join(pairs[:_LISTED])}{more}"


def one_line(text: str) -> str:
    """The text with line breaks written as \\n, so that it cannot forge another line of a prompt."""
    return _BREAK.sub(r"\\n", text)


def quoted(text: str) -> str:
    """The text in one line, with what looks like the marks << and >> escaped, so that it cannot forge them."""
    return _LIKE_MARKS.sub(r"\\\g<0>", one_line(text))


def chosen_examples(record: FeatureRecord, n: int) -> list[Example]:
    """Up to `n` examples of a feature: at most half of them the strongest ones, the others from its deciles."""
    top = [each for each in record.examples if each.bucket == "top"]
    rest = [each for each in record.examples if each.bucket != "top"]
    first = top[: max((n + 1) // 2, n - len(rest))]
    return [*first, *rest[: n - len(first)]]
