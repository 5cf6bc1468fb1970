"""From accumulators to the rows of the database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from feature_db.accumulators import Accumulators
from feature_db.examples import TOP, Window, choose, pack
from feature_db.labels import Evidence, Label, automatic, kind
from feature_db.statistics import pack_histogram, quantiles, wilson
from feature_db.terms import Lexicon, TermStat, fired, in_examples
from feature_db.words import Words

if TYPE_CHECKING:
    from collections.abc import Sequence

_CONTEXT_RADIUS = 8
_CONTEXT_EXAMPLES = 10
_OF_TOKENS = ("promotes", "suppresses", "fires_token")


@dataclass
class FeatureRow:
    """Everything that is stored about one feature."""

    number: int
    count: int
    density: float
    density_low: float
    density_high: float
    mean: float
    second_moment: float
    max: float
    histogram: bytes
    kind: str
    stats: list[TermStat]
    labels: list[Label]
    windows: bytes
    context: str
    """Text around its strongest peaks, for full-text search."""


class Rows:
    """All features of a dictionary as rows.

    Args:
        accumulators, words: what the pass gathered.
        projected: the promoted and suppressed tokens of every feature, empty lists where it has none.
    """

    def __init__(self, accumulators: Accumulators, words: Words, projected: Sequence[list[TermStat]]) -> None:
        self.accumulators, self.words, self.projected = accumulators, words, projected
        self.lexicon = Lexicon.of(accumulators, words)
        lexicon, a = self.lexicon, accumulators
        ones, tokens = np.ones(len(words.texts), np.int64), lexicon.token_count
        self._stats = [
            fired(a.words, "fires_word", a, lexicon.word_count, lexicon.word_tokens),
            fired(a.tokens, "fires_token", a, tokens, tokens),
            fired(a.next_words, "before", a, lexicon.word_count, lexicon.word_count * ones),
            in_examples(a.top, words, lexicon),
        ]

    def text(self, role: str, item: int) -> str:
        """Text of a row's token or word."""
        return self.words.vocabulary.texts[item] if role in _OF_TOKENS else self.words.texts[item]

    def occurrences(self, role: str, item: int) -> int:
        """How often a row's token or word occurs in the corpus."""
        return int((self.lexicon.token_count if role in _OF_TOKENS else self.lexicon.word_count)[item])

    def listed_words(self) -> list[int]:
        """Words that some feature's row names, in ascending order."""
        return sorted({row.item for stats in self._stats for rows in stats for row in rows if row.role not in _OF_TOKENS})

    def pieces(self) -> dict[int, str]:
        """For every word, JSON of the tokens of its commonest form, each with the share of its occurrences that lie in the word.

        The share says how far promoting a token promotes the word: all the way for " happy", little for " ha".
        """
        words, counts = self.words, self.lexicon.token_count
        inside: dict[tuple[int, int], int] = {}
        form_of: dict[int, int] = {}
        for form, word in enumerate(words.form_word):
            n = int(words.form_count[form])
            if word not in form_of or n > words.form_count[form_of[word]]:
                form_of[word] = form
            for token in set(words.forms[form]):
                inside[word, token] = inside.get((word, token), 0) + n
        return {
            word: json.dumps(
                [[t, round(min(inside[word, t] / max(int(counts[t]), 1), 1.0), 4)] for t in dict.fromkeys(words.forms[form])]
            )
            for word, form in form_of.items()
        }

    def __iter__(self) -> Iterator[FeatureRow]:
        a = self.accumulators
        m, n = a.moments, a.n_tokens
        low, high = wilson(m.firing, n)
        deciles = quantiles(m.histogram, m.largest, np.arange(1, 10) / 10)
        class_base = a.class_count / max(n, 1)
        for f in range(len(m.firing)):
            count = int(m.firing[f])
            alive = max(count, 1)
            stats = [row for role in self._stats for row in role[f]] + (self.projected[f] if count else [])
            by_role: dict[str, list[TermStat]] = {}
            for row in stats:
                by_role.setdefault(row.role, []).append(row)
            recall = m.classes[f] / np.maximum(a.class_count, 1)
            evidence = Evidence(by_role, self.text, self.occurrences, count, m.classes[f] / alive, recall, class_base)
            labels = automatic(evidence) if count else []
            windows = choose(a.top, a.sample, f, deciles[f], a.config.per_decile)
            density = count / max(n, 1)
            yield FeatureRow(
                number=f,
                count=count,
                density=density,
                density_low=float(low[f]),
                density_high=float(high[f]),
                mean=float(m.total[f] / alive),
                second_moment=float(m.square[f] / alive),
                max=float(m.largest[f]),
                histogram=pack_histogram(m.histogram[f]),
                kind=kind(labels, count, density),
                stats=stats,
                labels=labels,
                windows=pack(windows),
                context=self._context(windows),
            )

    def _context(self, windows: list[Window]) -> str:
        texts = self.words.vocabulary.texts
        snippets = []
        for window in [w for w in windows if w.bucket == TOP][:_CONTEXT_EXAMPLES]:
            near = window.token_ids[max(window.peak - _CONTEXT_RADIUS, 0) : window.peak + _CONTEXT_RADIUS + 1]
            snippets.append("".join(texts[t] for t in near.tolist()))
        return "\n".join(snippets)
