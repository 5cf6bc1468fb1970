"""Makes the rows of a database from what was read of another tool's files.

Statistics come from the files. The words that a feature fires on are counted in its own examples, since there is no corpus: their
rates are those among these examples, and higher than in running text.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_db.exchange.staging import StagedExample, StagedFeature, StagedLabel, Staging
from feature_db.index.rows import OF_TOKENS, FeatureRow, RowBlock
from feature_db.index.terms import KEEP, LEAST_SHARE, Stats, strength
from feature_db.index.words import Vocabulary, word_text
from feature_db.labels.evidence import Evidence, Label, TermStat
from feature_db.labels.rules import HUMAN, HUMAN_RANK, LABEL_METHODS, automatic, kind
from feature_db.labels.token_classes import CLASSES
from feature_db.store.examples import TOP, Window, pack
from feature_db.store.statistics import BINS, bin_edges, pack_histogram, quantiles, wilson
from saekit.pieces import join_text
from saekit.progress import Bar

MODEL_RANK = 50.0
"""Rank of a label that a model wrote: after labels by hand, before those by rules."""
_MOST_TOP, _MOST_OTHER = 40, 40
_RULES = ("words", "pieces", "peaks", "promotes")
_AROUND = 8
_CHUNK = 256


class Imported:
    """The rows of a dictionary from what was staged, in order of the features.

    Args:
        staging: what was read.
        n_features: number of features of the dictionary.
        n_tokens: tokens that the densities are of.
        bar: follows the features.
    """

    def __init__(self, staging: Staging, n_features: int, n_tokens: int, bar: Bar) -> None:
        self._staging, self._n, self.n_tokens, self._bar = staging, n_features, n_tokens, bar
        self._texts = list(staging.texts)
        vocabulary = Vocabulary.of(self._texts)
        self._left, self._right = vocabulary.joins_left, vocabulary.joins_right
        self._words: dict[str, int] = {}
        self._word_texts: list[str] = []
        self._of_form: dict[tuple[int, ...], int] = {}
        self.n_documents = staging.documents

    @property
    def n_live(self) -> int:
        """Features that fire."""
        return sum(self._staging.feature(number).facts.get("density", 0) > 0 for number in self._staging.numbers())

    def tokens(self) -> Iterable[tuple[str, int]]:
        """Text of each token, and how often it occurs in the examples."""
        return ((text, self._staging.counts[i]) for i, text in enumerate(self._texts))

    @property
    def word_texts(self) -> Sequence[str]:
        """Words by number, as many as the rows read so far refer to."""
        return self._word_texts

    def word(self, item: int) -> tuple[int, str | None]:
        """Occurrences of a word (not known) and its tokens (none)."""
        return 0, None

    def __iter__(self) -> Iterator[RowBlock]:
        for start in range(0, self._n, _CHUNK):
            made = [self._row(self._staging.feature(number)) for number in range(start, min(start + _CHUNK, self._n))]
            yield RowBlock([row for row, _ in made], columns([stats for _, stats in made]))
            self._bar.update(start + len(made))

    def _row(self, feature: StagedFeature) -> tuple[FeatureRow, list[TermStat]]:
        facts = feature.facts
        histogram = rebinned(facts.get("heights", ()), facts.get("centres", ()))
        largest = max([facts.get("max", 0.0), *(max(each.values) for each in feature.examples)])
        density = facts.get("density", 0.0)
        count = int(histogram.sum()) or round(density * self.n_tokens)
        low, high = wilson([count], self.n_tokens)
        mean, square = _moments(facts)
        deciles = quantiles(histogram[None], np.array([largest]), np.arange(1, 10) / 10)[0]
        windows = self._windows(feature.examples, deciles)
        stats = self._stats(windows) + self._effects(facts)
        own = [label for label in feature.labels if label.method in LABEL_METHODS]
        by_rule = [] if own or not count else automatic(self._evidence(stats, windows, count), _RULES)
        labels = sorted([*labels_of(feature), *by_rule], key=lambda label: -label.rank)
        ruled = [label for label in labels if label.method in LABEL_METHODS]
        row = FeatureRow(
            number=feature.number,
            count=count,
            density=density,
            density_low=float(low[0]),
            density_high=float(high[0]),
            mean=mean,
            second_moment=square,
            max=largest,
            histogram=pack_histogram(histogram),
            kind=kind(ruled, count, density),
            labels=labels,
            classes=[],
            partners=[],
            windows=pack(windows),
            context=self._context(windows),
        )
        return row, stats

    def _windows(self, examples: Sequence[StagedExample], deciles: NDArray[np.float64]) -> list[Window]:
        """The strongest examples, then those of each tenth, the strongest tenth first."""
        top: list[Window] = []
        others: list[Window] = []
        groups = [(each.low, each.high or each.low) for each in examples if each.low is not None and each.low >= 0]
        tenths = _tenths(groups, deciles)
        for each in examples:
            values = np.array(each.values, np.float32)
            bucket = TOP if each.low is None else tenths.get((each.low, each.high or each.low), TOP)
            window = Window(bucket, 0, each.document or 0, each.peak, each.peak, np.array(each.tokens, np.int64), values)
            (top if bucket == TOP else others).append(window)
        top.sort(key=lambda window: -float(window.values[window.peak]))
        others.sort(key=lambda window: -window.bucket)
        return top[:_MOST_TOP] + others[:_MOST_OTHER]

    def _stats(self, windows: Sequence[Window]) -> list[TermStat]:
        """Tokens and words that the feature fires on, and words at its peaks, in its examples."""
        mass: dict[str, defaultdict[int, float]] = {role: defaultdict(float) for role in ("fires_token", "fires_word")}
        firing: dict[str, Counter[int]] = {role: Counter() for role in mass}
        seen: dict[str, Counter[int]] = {role: Counter() for role in mass}
        hit: dict[str, Counter[int]] = {role: Counter() for role in mass}
        peak: dict[tuple[str, int], float] = {}
        at_peak: Counter[int] = Counter()
        for window in windows:
            for role, spans in (
                ("fires_token", [(int(token), i, i + 1) for i, token in enumerate(window.token_ids)]),
                ("fires_word", list(self._spans(window.token_ids))),
            ):
                for item, start, stop in spans:
                    values = window.values[start:stop]
                    seen[role][item] += 1
                    if role == "fires_word" and start <= window.peak < stop and window.bucket == TOP:
                        at_peak[item] += 1
                    if values.any():
                        mass[role][item] += float(values.sum())
                        firing[role][item] += int((values > 0).sum())
                        hit[role][item] += 1
                        peak[role, item] = max(peak.get((role, item), 0.0), float(values.max()))
        found: list[TermStat] = []
        for role, of in mass.items():
            total = sum(of.values()) or 1.0
            length = max(sum(seen[role].values()), 1)
            rows = []
            for item, held in of.items():
                share, rate = held / total, hit[role][item] / seen[role][item]
                common = seen[role][item] / length
                score = float(strength(*(np.array([x]) for x in (share, rate, common, common)))[0])
                if share >= LEAST_SHARE and score > 0:
                    rows.append(TermStat(role, item, share, rate, peak[role, item], firing[role][item], score))
            found += sorted(rows, key=lambda row: (-row.score, row.item))[: KEEP[role]]
        tops = sum(window.bucket == TOP for window in windows)
        shares = [(item, n / tops) for item, n in at_peak.most_common(KEEP["peaks"]) if n >= 2]
        return found + [TermStat("peaks", item, share, None, None, at_peak[item], share) for item, share in shares]

    def _spans(self, tokens: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
        """Words of a text: number of the word, first token, and token after the last."""
        joined = self._right[tokens[:-1]] & self._left[tokens[1:]]
        starts = [0, *(np.flatnonzero(~joined) + 1).tolist()]
        for start, stop in zip(starts, [*starts[1:], len(tokens)]):
            form = tuple(tokens[start:stop].tolist())
            if form not in self._of_form:
                text = word_text(join_text([self._texts[token] for token in form]))
                if text not in self._words:
                    self._words[text] = len(self._word_texts)
                    self._word_texts.append(text)
                self._of_form[form] = self._words[text]
            yield self._of_form[form], start, stop

    def _effects(self, facts: dict[str, Any]) -> list[TermStat]:
        """Promoted and suppressed tokens. Their scores are as in :func:`feature_db.index.projection.promoted` where the histogram
        of logits is known, else relative to the strongest."""
        heights, centres = (np.array(each) for each in facts.get("logits", ((), ())))
        known = len(heights) == len(centres) and heights.sum() > 0
        mean = float(np.average(centres, weights=heights)) if known else 0.0
        std = math.sqrt(float(np.average((centres - mean) ** 2, weights=heights))) if known else 0.0
        scale = 2 * math.sqrt(2 * math.log(max(float(heights.sum()), 2.0))) if known else 1.0
        found = []
        for role, sign, rows in (("promotes", 1, facts.get("pos", ())), ("suppresses", -1, facts.get("neg", ()))):
            strongest = max((abs(value) for _, value in rows), default=0.0) or 1.0
            for token, value in rows:
                score = sign * (value - mean) / std / scale if std else abs(value) / strongest / 2
                found.append(TermStat(role, token, value, None, None, None, min(max(score, 0.0), 1.0)))
        return found

    def _evidence(self, stats: Sequence[TermStat], windows: Sequence[Window], count: int) -> Evidence:
        by_role: dict[str, list[TermStat]] = {}
        for stat in stats:
            by_role.setdefault(stat.role, []).append(stat)
        fired = max(sum(int((window.values > 0).sum()) for window in windows), 1)
        none = np.zeros(len(CLASSES))

        def occurrences(role: str, item: int) -> int:
            row = next(stat for stat in by_role[role] if stat.item == item)
            return round((row.hits or 0) / row.rate) if row.rate else 0

        return Evidence(
            by_role, self._text, occurrences, fired, none, none, none, none, self.n_tokens, lambda word: (), lambda name: 0
        )

    def _text(self, role: str, item: int) -> str:
        return self._texts[item] if role in OF_TOKENS else self._word_texts[item]

    def _context(self, windows: Sequence[Window]) -> str:
        near = [
            window.token_ids[max(window.peak - _AROUND, 0) : window.peak + _AROUND + 1].tolist()
            for window in windows[:10]
            if window.bucket == TOP
        ]
        return "\n".join(join_text([self._texts[token] for token in tokens]) for tokens in near)


def _tenths(groups: Sequence[tuple[float, float]], deciles: NDArray[np.float64]) -> dict[tuple[float, float], int]:
    """The tenth of the activations, 1 to 10, in which the middle of each group lies.

    Bars of a histogram are too wide to tell the weakest tenths apart. Where there are no more than ten groups, as in exports of
    saekit, no two get the same tenth.
    """
    ordered = sorted(set(groups))
    found: dict[tuple[float, float], int] = {}
    last = 0
    for place, (low, high) in enumerate(ordered):
        tenth = int(np.searchsorted(deciles, (low + high) / 2, side="right")) + 1
        if len(ordered) <= 10:
            tenth = min(max(tenth, last + 1), 10 - (len(ordered) - 1 - place))
        found[low, high] = last = tenth
    return found


def columns(stats: Sequence[Sequence[TermStat]]) -> list[Stats]:
    """The rows of a block of features by role, as columns."""
    found = []
    for role in dict.fromkeys(stat.role for rows in stats for stat in rows):
        of_role = [[stat for stat in rows if stat.role == role] for rows in stats]
        mine = [(i, rank, *stat[1:]) for i, rows in enumerate(of_role) for rank, stat in enumerate(rows)]
        feature, rank, item, value, rate, peak, hits, score = map(np.array, zip(*mine))
        known = [None if each[0] is None else each for each in (rate, peak, hits)]
        found.append(Stats(role, feature, rank, item, value, known[0], known[1], known[2], score))
    return found


def rebinned(heights: Sequence[float], centres: Sequence[float]) -> NDArray[np.uint32]:
    """(BINS,) counts of bars of equal width, spread evenly over their widths. Their sum is exact."""
    if not len(heights):
        return np.zeros(BINS, np.uint32)
    middle = np.array(centres, np.float64)
    half = float(middle[1] - middle[0]) / 2 if len(middle) > 1 else abs(float(middle[0])) / 2
    edges = np.append(middle - half, middle[-1] + half)
    total = np.rint(np.cumsum(np.append(0.0, heights)))
    if half <= 0 or not (np.diff(edges) > 0).all():
        edges = np.array([0.0, max(float(middle.max()), 1e-6)])
        total = total[[0, -1]]
    ours = bin_edges()
    below = np.interp(ours, edges, total)
    below[0], below[-1] = total[0], total[-1]
    return np.minimum(np.diff(np.rint(below)), np.iinfo(np.uint32).max).astype(np.uint32)


def _moments(facts: dict[str, Any]) -> tuple[float, float]:
    """Mean and mean square over the firing tokens, from the histogram."""
    heights, centres = np.array(facts.get("heights", ())), np.array(facts.get("centres", ()))
    if not heights.sum() > 0:
        return 0.0, 0.0
    return float(np.average(centres, weights=heights)), float(np.average(centres**2, weights=heights))


def labels_of(feature: StagedFeature) -> list[Label]:
    """The labels of a feature, with their ranks."""
    return [_label(label, rank) for label, rank in _ranked(feature.labels)]


def _ranked(labels: Sequence[StagedLabel]) -> list[tuple[StagedLabel, float]]:
    """Labels with their ranks: by hand, by a model, by rules in the order of the file."""
    found = []
    for place, label in enumerate(labels):
        rank = HUMAN_RANK if label.method == HUMAN else MODEL_RANK
        found.append((label, 0.9 / (1 + place) if label.method in LABEL_METHODS else rank))
    return found


def _label(label: StagedLabel, rank: float) -> Label:
    keywords = "" if label.method in LABEL_METHODS else label.text
    return Label(label.method, label.text, rank, keywords, label.scores, label.model)
