"""Whether generated text is degenerate: empty, or one word over and over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

SHORTEST, MOST = 6, 0.5
"""A text of at least SHORTEST words that is by more than MOST one word counts as one repeated word."""


def repetition(texts: Sequence[str]) -> float:
    """Share of the words of a text that are its most frequent word, mean over the texts with a word; NaN without such a text."""
    shares = [share for text in texts if (share := _share(text)) is not None]
    return sum(shares) / len(shares) if shares else float("nan")


def warnings_of(texts: Sequence[str]) -> list[str]:
    """What is wrong with texts, in sentences; empty where nothing is."""
    found, n = [], len(texts)
    if empty := sum(not text.strip() for text in texts):
        found.append(f"{empty} of {n} continuations are empty: the strength is too high, or steering makes the text end.")
    repeated = [text for text in texts if len(text.split()) >= SHORTEST and (_share(text) or 0) > MOST]
    if repeated:
        word = Counter(repeated[0].lower().split()).most_common(1)[0][0]
        found.append(f"{len(repeated)} of {n} continuations repeat one word ({word!r:.40}): the strength is too high.")
    return found


def _share(text: str) -> float | None:
    words = text.lower().split()
    return Counter(words).most_common(1)[0][1] / len(words) if words else None
