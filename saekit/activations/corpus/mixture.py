"""Mixtures of corpora, in exact proportions of documents."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from saekit.activations.corpus.base import OPTIONS, Corpus, CorpusSource, UnusedOptions, open_leaving_out
from saekit.activations.corpus.documents import Document
from saekit.errors import ConfigError

_WEIGHTS = "Write --data A:0.7 --data B:0.3: positive numbers whose sum is 1, or no weights at all for equal shares."


def open_mixture(asked: CorpusSource) -> Corpus | None:
    """The mixture of a mapping {source: weight}; None where the source is something else.

    Raises:
        ConfigError: a weight is impossible, or there are not as many revisions as sources.
        UnusedOptions: no source has splits, configurations or revisions, and one is given.
        As :meth:`Corpus.open` does for each source.
    """
    given = asked.source
    if (
        not isinstance(given, Mapping)
        or not given
        or not all(isinstance(each, int | float | Fraction) for each in given.values())
    ):
        return None
    revisions = [asked.revision] * len(given) if asked.revision is None or isinstance(asked.revision, str) else asked.revision
    if len(revisions) != len(given):
        raise ConfigError(f"There are {len(revisions)} revisions for {len(given)} sources.", "Give one for each, or none.")
    corpora, used = [], frozenset[str]()
    for source, revision in zip(given, revisions):
        one = replace(asked, source=source, revision=revision, shuffle=None if _is_random(source) else asked.shuffle)
        corpus, unused = open_leaving_out(one)
        corpora.append(corpus)
        used |= one.options - unused
    if ignored := [name for name in OPTIONS if name in asked.options - used]:
        raise UnusedOptions(f"The sources {', '.join(map(str, given))} have", ignored)
    return MixtureCorpus(corpora, list(given.values()))


def _is_random(source: Any) -> bool:
    from saekit.builtin import is_lab

    return is_lab(source)


class MixtureCorpus(Corpus):
    """Documents of several corpora in turn, so that any beginning of the mixture has them in proportion to their weights.

    Of the first n documents, the number that comes from a corpus with weight w is w n, rounded up or down. Rows without a
    document are not counted. The order depends on the weights only: nothing is random. The mixture ends where the first corpus
    ends, so that the proportions hold to its end and no document comes twice.

    Args:
        corpora: the corpora.
        weights: their shares, which sum to 1.

    Raises:
        ConfigError: a weight is not positive and finite, or they do not sum to 1.
    """

    def __init__(self, corpora: Sequence[Corpus], weights: Sequence[float | Fraction]) -> None:
        self.corpora, self.weights = list(corpora), shares(weights)
        super().__init__(f"the mixture of {' and '.join(corpus.source for corpus in corpora)}", corpora[0].fields)

    @property
    def parts(self) -> Sequence[Corpus]:
        return self.corpora

    @property
    def unshuffled(self) -> Corpus:
        return MixtureCorpus([corpus.unshuffled for corpus in self.corpora], self.weights)

    def rows(self, start: int = 0) -> Iterator[Document]:
        return self.documents(start)

    def documents(self, start: int = 0) -> Iterator[Document]:
        taken = [0] * len(self.corpora)
        turns = turns_of(self.weights)
        for turn in itertools.islice(turns, start):
            taken[turn] += 1
        sources = [(document for document in corpus.documents() if document) for corpus in self.corpora]
        if any(sum(1 for _ in itertools.islice(source, count)) < count for source, count in zip(sources, taken)):
            return  # the mixture ends before `start`
        for turn in turns:
            if (document := next(sources[turn], None)) is None:
                return
            yield document

    def place(self, number: int) -> str:
        *before, turn = itertools.islice(turns_of(self.weights), number + 1)
        corpus = self.corpora[turn]
        rows = (row for row, document in enumerate(corpus.documents()) if document)
        return corpus.place(next(itertools.islice(rows, before.count(turn), None)))

    def fingerprint(self) -> dict[str, str]:
        facts = {"mixture": str(len(self.corpora))}
        for number, (corpus, weight) in enumerate(zip(self.corpora, self.weights)):
            facts |= {
                f"{number}.weight": str(weight),
                **{f"{number}.{name}": fact for name, fact in corpus.fingerprint().items()},
            }
        return facts


def shares(weights: Sequence[float | Fraction]) -> list[Fraction]:
    """Weights as exact fractions that sum to 1: 0.7 is 7/10.

    Raises:
        ConfigError: a weight is not positive and finite, or they do not sum to 1.
    """
    try:
        exact = [Fraction(str(weight)) for weight in weights]
    except ValueError as error:
        raise ConfigError(f"The weights of the mixture are {', '.join(map(str, weights))}.", _WEIGHTS) from error
    if wrong := [weight for weight, share in zip(weights, exact) if share <= 0]:
        raise ConfigError(f"A weight of the mixture is {wrong[0]}; it must be above 0.", _WEIGHTS)
    total = sum(exact, start=Fraction(0))
    if abs(total - 1) > Fraction(1, 10**6):
        raise ConfigError(f"The weights of the mixture sum to {float(total):g}, not to 1.", _WEIGHTS)
    return [share / total for share in exact]


def turns_of(weights: Sequence[Fraction]) -> Iterator[int]:
    """Whose turn it is, for ever. After n turns, a source with weight w has had floor(w n) or ceil(w n) of them.

    The j-th turn of a source (from 0) may come from turn floor(j / w) on, and must come before turn ceil((j + 1) / w). Of the
    sources that may have a turn, the one with the earliest deadline gets it, which meets all deadlines (Baruah et al. 1996,
    "Proportionate progress").
    """
    whole = math.lcm(*(weight.denominator for weight in weights))
    parts = [int(weight * whole) for weight in weights]
    taken = [0] * len(weights)
    for n in itertools.count():
        ready = [i for i, part in enumerate(parts) if taken[i] * whole // part <= n]
        turn = min(ready, key=lambda i: (-(-(taken[i] + 1) * whole // parts[i]), i))
        taken[turn] += 1
        yield turn


def read_sources(data: Sequence[str]) -> dict[str, Fraction]:
    """The sources and weights of `A:0.7`, `B:0.3`. A weight may be a fraction, 1/3. Without weights, all have the same.

    Raises:
        ConfigError: some have weights and others have none, a source is named twice, or a weight is impossible.
    """
    read = [_weighted(each) for each in data]
    weighted = [weight for _, weight in read if weight is not None]
    if weighted and len(weighted) < len(read):
        without = next(source for source, weight in read if weight is None)
        raise ConfigError(f"{without!r} has no weight, and others have one.", _WEIGHTS)
    names = [source for source, _ in read]
    if twice := [source for source in names if names.count(source) > 1]:
        raise ConfigError(f"{twice[0]!r} is named twice in the mixture.", "Name each source once.")
    return dict(zip(names, shares(weighted or [Fraction(1, len(read))] * len(read))))


def _weighted(text: str) -> tuple[str, Fraction | None]:
    source, colon, weight = text.rpartition(":")
    if not colon or Path(text).expanduser().exists():
        return text, None
    try:
        return source, Fraction(weight)
    except (ValueError, ZeroDivisionError):
        return text, None
