"""Turns the statistics of the pass into rows of the database."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from feature_db.index.accumulators import Accumulators
from feature_db.index.choose import choose
from feature_db.index.terms import Lexicon, Stats, fired, in_examples
from feature_db.index.words import Words
from feature_db.labels.evidence import Evidence, Label
from feature_db.labels.rules import chosen, kind, labelled
from feature_db.labels.token_classes import CLASSES
from feature_db.labels.word_classes import WORD_CLASSES
from feature_db.store.examples import TOP, Columns, pack
from feature_db.store.statistics import pack_histogram, quantiles, wilson
from saekit.pieces import join_text

if TYPE_CHECKING:
    from collections.abc import Sequence

_CHUNK = 256
_CONTEXT_RADIUS = 8
_CONTEXT_EXAMPLES = 10
_LEAST_F1, _LEAST_LIFT = 0.1, 1.5
"""Below this F1, or with a precision below this multiple of chance, a feature does not detect a class."""
OF_TOKENS = ("promotes", "suppresses", "fires_token")
"""Roles whose items are tokens. The items of other roles are words."""


PartnerRow = tuple[str, int, int, float, int, float, int]
"""kind, rank, other, value, together, chance, missed: as in the table `partner`."""


@dataclass
class FeatureRow:
    """All stored data of one feature."""

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
    labels: list[Label]
    classes: list[tuple[str, float, float, float]]
    """Classes of tokens that it detects: name, F1, precision and recall."""
    partners: list[PartnerRow]
    windows: bytes
    context: str
    """Text around the strongest peaks, for full-text search."""


class RowBlock(NamedTuple):
    """The rows of consecutive features."""

    features: list[FeatureRow]
    stats: list[Stats]
    """Relations to tokens and words, by role."""


class Rows:
    """The rows of all features of a dictionary, computed in chunks during iteration.

    Args:
        accumulators, words: the results of the pass.
        project: returns the promoted and suppressed tokens of the features with these numbers.
    """

    def __init__(self, accumulators: Accumulators, words: Words, project: Callable[[Sequence[int]], Sequence[Stats]]) -> None:
        self.accumulators, self.words, self._project = accumulators, words, project
        self.lexicon = Lexicon.of(accumulators, words)
        self._partners = accumulators.partners()

    @property
    def n_live(self) -> int:
        """Features that fire."""
        return int((self.accumulators.moments.firing > 0).sum())

    @property
    def n_tokens(self) -> int:
        """Tokens counted."""
        return self.accumulators.n_tokens

    @property
    def n_documents(self) -> int:
        """Documents counted."""
        return self.accumulators.n_documents

    def tokens(self) -> Iterable[tuple[str, int]]:
        """Text and occurrences of each token id."""
        return zip(self.words.vocabulary.texts, self.lexicon.token_count.tolist())

    @property
    def word_texts(self) -> Sequence[str]:
        """Words by number."""
        return self.words.texts

    def word(self, item: int) -> tuple[int, str | None]:
        """Occurrences and tokens (:attr:`pieces`) of a word."""
        return int(self.lexicon.word_count[item]), self.pieces[item]

    def text(self, role: str, item: int) -> str:
        """Text of a row's token or word."""
        return self.words.vocabulary.texts[item] if role in OF_TOKENS else self.words.texts[item]

    def occurrences(self, role: str, item: int) -> int:
        """Number of occurrences of a row's token or word in the corpus."""
        return int((self.lexicon.token_count if role in OF_TOKENS else self.lexicon.word_count)[item])

    @cached_property
    def pieces(self) -> dict[int, str]:
        """For every word, the tokens of its most frequent form as JSON, each with the share of its occurrences in the word.

        The share measures how much promoting the token promotes the word: fully for " happy", little for " ha".
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

    @cached_property
    def _word_classes(self) -> list[list[str]]:
        """The classes of each word."""
        classes = dict(WORD_CLASSES)
        return [[name for name, of in classes.items() if of.holds(text)] for text in self.words.texts]

    @cached_property
    def _class_occurrences(self) -> Counter[str]:
        """Occurrences of the words in each class."""
        found: Counter[str] = Counter()
        for names, count in zip(self._word_classes, self.lexicon.word_count.tolist()):
            found.update(dict.fromkeys(names, count))
        return found

    def __iter__(self) -> Iterator[RowBlock]:
        n_features = len(self.accumulators.moments.firing)
        blocks = [slice(start, min(start + _CHUNK, n_features)) for start in range(0, n_features, _CHUNK)]
        for block in blocks:
            yield self._block(block, self._promoted(block))

    def _promoted(self, block: slice) -> list[Stats]:
        """The tokens that the features of a block promote and suppress."""
        alive = np.flatnonzero(self.accumulators.moments.firing[block])
        if not len(alive):
            return []
        return [each._replace(feature=alive[each.feature]) for each in self._project((block.start + alive).tolist())]

    def _block(self, block: slice, promoted: Sequence[Stats]) -> RowBlock:
        a, lexicon = self.accumulators, self.lexicon
        m, n, config = a.moments, a.n_tokens, a.config
        stats = [
            fired(a.words, "fires_word", a, block, lexicon.word_count, lexicon.word_tokens),
            fired(a.tokens, "fires_token", a, block, lexicon.token_count, lexicon.token_count),
            fired(a.next_words, "before", a, block, lexicon.word_count, lexicon.word_count),
            *in_examples(a.top, self.words, lexicon, block),
            *promoted,
        ]
        low, high = wilson(m.firing[block], n)
        deciles = quantiles(m.histogram[block], m.largest[block], np.arange(1, 10) / 10)
        evidence = self._evidence(block, stats)
        partners = self._partners.of(block).rows()
        features, methods = [], chosen(config.labels)
        for i, columns in enumerate(choose(a.top, a.sample, block, deciles, config.per_decile)):
            f = block.start + i
            count = int(m.firing[f])
            labels = labelled(evidence[i], methods) if count else []
            density = count / max(n, 1)
            row = FeatureRow(
                number=f,
                count=count,
                density=density,
                density_low=float(low[i]),
                density_high=float(high[i]),
                mean=float(m.total[f] / max(count, 1)),
                second_moment=float(m.square[f] / max(count, 1)),
                max=float(m.largest[f]),
                histogram=pack_histogram(m.histogram[f]),
                kind=kind(labels, count, density),
                labels=labels,
                classes=_classes(evidence[i]) if count else [],
                partners=partners[i],
                windows=pack(columns),
                context=self._context(columns),
            )
            features.append(row)
        return RowBlock(features, stats)

    def _evidence(self, block: slice, stats: Sequence[Stats]) -> list[Evidence]:
        a = self.accumulators
        classes, count = a.moments.classes[block], a.moments.firing[block]
        share = classes / np.maximum(count, 1)[:, None]
        mass = a.moments.class_total[block] / np.maximum(a.moments.total[block], 1e-30)[:, None]
        recall, base = classes / np.maximum(a.class_count, 1), a.class_count / max(a.n_tokens, 1)
        by_role = {each.role: each.by_feature(len(count)) for each in stats}
        return [
            Evidence(
                {role: rows[i] for role, rows in by_role.items()},
                self.text,
                self.occurrences,
                n,
                share[i],
                mass[i],
                recall[i],
                base,
                a.n_tokens,
                self._word_classes.__getitem__,
                self._class_occurrences.__getitem__,
                (a.config.before, a.config.after),
            )
            for i, n in enumerate(count.tolist())
        ]

    def _context(self, examples: Columns) -> str:
        texts, torn = self.words.vocabulary.texts, self._torn
        ends, snippets = np.cumsum(examples.length), []
        for n in range(min(int((examples.bucket == TOP).sum()), _CONTEXT_EXAMPLES)):
            first, peak = int(ends[n] - examples.length[n]), int(ends[n] - examples.length[n] + examples.peak[n])
            near = examples.tokens[max(peak - _CONTEXT_RADIUS, first) : min(peak + _CONTEXT_RADIUS + 1, int(ends[n]))].tolist()
            words = [texts[t] for t in near]
            snippets.append("".join(words) if torn.isdisjoint(near) else join_text(words))
        return "\n".join(snippets)

    @cached_property
    def _torn(self) -> set[int]:
        """Tokens that may hold a part of a character."""
        return {token for token, text in enumerate(self.words.vocabulary.texts) if "\\x" in text}


def _classes(evidence: Evidence) -> list[tuple[str, float, float, float]]:
    precision, recall = evidence.class_mass, evidence.class_recall
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    kept = (f1 >= _LEAST_F1) & (precision >= _LEAST_LIFT * evidence.class_base)
    return [(name, float(f1[c]), float(precision[c]), float(recall[c])) for c, name in enumerate(CLASSES) if kept[c]]
