"""Scores the labels of a dictionary on held-out documents, and writes the scores as they become known."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from feature_db.scorers.given import Given, Judge
from feature_db.scorers.heldout import MAX_TOKENS, Heldout, heldout_share
from feature_db.scorers.registry import SCORERS, Result, Scorer
from feature_db.scorers.subject import Subject
from saekit.errors import StoreMismatch
from saekit.names.ref import Ref
from saekit.progress import track

if TYPE_CHECKING:
    from feature_db.db import FeatureDB
    from feature_db.index.indexing import Store
    from feature_db.records import IndexedSAE
    from saekit.lm import LanguageModel
    from saekit.names.address import Address
    from saekit.names.site import Site
    from saekit.sae import SAE

_SECONDS = 5.0
"""The first result after this time is written with those before it. Those of a judge may cost money, and are written at once."""
_CHUNK = 8192
"""Features whose labels are in memory at a time."""


@dataclass
class Scored:
    """What a scorer did."""

    scorer: str
    scored: int = 0
    """Labels that have a score now and had none."""
    known: int = 0
    """Labels to score that had one already."""
    failed: dict[str, int] = field(default_factory=dict)
    """Labels without a score, by reason."""

    def add(self, chunk: _Chunk) -> None:
        """Count the labels of a chunk that are not to be scored."""
        self.known += chunk.known
        self.failed = dict(Counter(self.failed) + chunk.barred)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return dict(vars(self))


def score(
    database: FeatureDB,
    dictionary: str | Site | Address,
    *,
    store: Store,
    sae: SAE,
    lm: LanguageModel,
    scorers: Sequence[str] | None = None,
    features: Iterable[int] | None = None,
    again: bool = False,
    options: Mapping[str, Any] | None = None,
    max_tokens: int = MAX_TOKENS,
    progress: bool = True,
) -> list[Scored]:
    """Score the labels of a dictionary on documents that its index did not count.

    A label by a model is not scored unless it was made from the documents that the present index counted: others may be held out
    now. It is counted with the reason in `failed`. Each scorer goes on where it was interrupted. What it has found is written
    every few seconds. What a judge found is written at once, with the name of its model and the hash of its prompt: a score by
    another judge counts as none, and is replaced. The label of a feature that is shown is chosen anew from the scores
    (:mod:`feature_db.labels.ranking`).

    Args:
        database: the feature database.
        dictionary: address of the dictionary.
        store: the activations that it was indexed on.
        sae: the dictionary.
        lm: the model.
        scorers: names in :data:`SCORERS`; None: those that run by default.
        features: numbers of the features; None: all.
        again: score labels that have a score, too.
        options: settings of scorers, by name; `seed` is that of all random choices.
        max_tokens: about this number of held-out tokens is read.
        progress: show progress bars.

    Raises:
        UnknownSite: the dictionary is not indexed.
        WorkspaceError: another dictionary is at its address now.
        StoreMismatch: the index counted all documents, or the store, the model or the dictionary is not the one that was indexed,
            or no document is held out.
        ConfigError: there is no such scorer.
        UnknownRef: there is no such feature.
        DatabaseError, StorageFull: the scores cannot be written.
    """
    rows = {name: SCORERS.find(name) for name in (scorers or [n for n, row in SCORERS.items() if row.default])}
    indexed = database.dictionary(dictionary)
    corpus = database.corpus(indexed)
    share = heldout_share(indexed, corpus)
    if sae.fingerprint() != indexed.fingerprint:
        raise StoreMismatch(f"The dictionary given is not the one indexed as {indexed.dictionary}.", "Give the indexed one.")
    _check_store(store, corpus, indexed.dictionary)
    options = dict(options or {})
    work = _Work(database, indexed.address, _numbers(database, indexed, features), again, options.get("methods"))
    outcomes: list[Scored] = []
    subject: Subject | None = None
    for name, row in rows.items():
        outcomes.append(Scored(name))
        judge = judge_of(name, options)
        done = database.scored(indexed.address, row.metric, judge)
        if subject is None and any(chunk.todo for chunk in work.chunks(row, done)):
            heldout = Heldout.read(store, lm, sae, indexed.address.site, share, max_tokens=max_tokens, progress=progress)
            vectors, seed = database.vectors(indexed.address), int(options.get("seed", 0))
            subject = Subject(lm, sae, indexed, heldout, vectors, options, seed, progress)
        with track(f"scoring ({name})", len(work.numbers), unit="features", subject=indexed.dictionary, enabled=progress) as bar:
            for chunk in work.chunks(row, done):
                outcomes[-1].add(chunk)
                if subject is not None and chunk.todo:
                    first, writer = chunk.first, _Writer(database, indexed.address, judge)
                    _run(writer, row, outcomes[-1], subject, chunk.todo, lambda n, first=first: bar.update(first + n))  # type: ignore[misc]
            bar.update(len(work.numbers))
    return outcomes


def judge_of(scorer: str, options: Mapping[str, Any]) -> Judge | None:
    """The judge that a scorer asks, by the options of scorers; None if it asks none, or none is named.

    Args:
        scorer: its name.
        options: `judge` is a chat model, or the name of one.
    """
    row, model = SCORERS.find(scorer), options.get("judge")
    if not row.judged or model is None:
        return None
    from feature_db.chat.prompt import Prompt

    return Judge(scorer, str(getattr(model, "name", model)), Prompt.packaged(row.prompt).sha256 if row.prompt else "")


def _numbers(database: FeatureDB, indexed: IndexedSAE, features: Iterable[int] | None) -> list[int]:
    """The features to score, ascending."""
    if features is None:
        return list(range(indexed.n_features))
    numbers = sorted(set(features))
    for number in (*numbers[:1], *numbers[-1:]):
        database.identities([Ref.feature(indexed.dictionary, number)])
    return numbers


class _Chunk(NamedTuple):
    """The labels of some features."""

    first: int
    """Features before them."""
    todo: list[Given]
    """Labels to score."""
    known: int
    """Labels that have a score."""
    barred: Counter[str]
    """Labels that must not be scored, by reason."""


@dataclass(frozen=True)
class _Work:
    """The labels of a dictionary, some features at a time: all of them might not fit into memory."""

    database: FeatureDB
    address: Address
    numbers: Sequence[int]
    again: bool
    methods: Sequence[str] | None
    """Methods of labels to score; None: all."""

    def chunks(self, row: Scorer, done: Set[int]) -> Iterator[_Chunk]:
        """What is to be done, for some features at a time."""
        for first in range(0, len(self.numbers), _CHUNK):
            labels = self.database.labels_of(self.address, self.numbers[first : first + _CHUNK])
            taken = [label for label in labels if row.takes(label, self.methods)]
            new = [label for label in taken if self.again or label.id not in done]
            barred = Counter(label.barred for label in new if label.barred)
            yield _Chunk(first, [label for label in new if not label.barred], len(taken) - len(new), barred)


@dataclass
class _Writer:
    """Writes results: those of a judge at once, others every few seconds."""

    database: FeatureDB
    address: Address
    judge: Judge | None
    found: list[Result] = field(default_factory=list)
    last: float = field(default_factory=time.monotonic)

    def add(self, result: Result) -> None:
        """Write a result now or later."""
        self.found.append(result)
        if self.judge is not None or time.monotonic() - self.last > _SECONDS:
            self.write()

    def write(self) -> None:
        """Write what is not written."""
        found, self.found = self.found, []
        self.database.add_scores(self.address, found, self.judge)
        self.last = time.monotonic()


def _run(
    writer: _Writer, row: Scorer, outcome: Scored, subject: Subject, labels: list[Given], show: Callable[[int], None]
) -> None:
    """Run one scorer, and write what it finds; `show` gets the number of features that are done."""
    failed = Counter(outcome.failed)
    features = len({label.feature for label in labels})
    try:
        for done, result in enumerate(_checked(row(subject, labels), row.metric), 1):
            if result.failed:
                failed[result.failed] += 1
            else:
                outcome.scored += 1
            writer.add(result)
            show(features * done // len(labels))
    finally:  # also after Ctrl-C
        writer.write()
        outcome.failed = dict(failed)


def _checked(results: Iterator[Result], metric: str) -> Iterator[Result]:
    for result in results:
        if not result.failed and metric not in result.scores:
            raise ValueError(f"a scorer gave no {metric} for a label, and no reason")
        yield result


def _check_store(store: Store, corpus: Mapping[str, Any], dictionary: str) -> None:
    """Raise unless a store holds the documents that the index numbers."""
    import json

    here = json.loads(json.dumps(store.provenance, sort_keys=True, default=str))
    if here != corpus.get("store"):
        raise StoreMismatch(
            f"{dictionary} was indexed on other activations than those given, so its documents have other numbers.",
            "Index it again: `saekit index`.",
        )
