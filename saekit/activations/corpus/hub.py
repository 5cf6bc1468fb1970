"""Corpora on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from saekit.activations.corpus.base import Corpus, CorpusSource
from saekit.activations.corpus.formats import Row
from saekit.errors import CorpusError
from saekit.hub import Problem, Repository, is_commit

SHUFFLE_BUFFER = 10_000
"""Documents of a streamed data set among which the next one is drawn when it is shuffled."""
_OTHERWISE = "Check its configuration (--data-config), its split (--data-split) and its files."


def open_hub(asked: CorpusSource) -> Corpus | None:
    """The data set of that name; None where the source is not a name."""
    return HubCorpus(asked) if isinstance(asked.source, str | Path) else None


class HubCorpus(Corpus):
    """A data set that :func:`datasets.load_dataset` loads. It is looked up when documents are first read.

    Args:
        asked: what the user asks for.
        commit: which the revision points to, or why the hub does not say, where the caller knows it.
    """

    def __init__(self, asked: CorpusSource, commit: str | Problem | None = None) -> None:
        super().__init__(str(asked.source), asked.fields)
        self._asked = asked
        self._revision = asked.revision if asked.revision is None or isinstance(asked.revision, str) else asked.revision[0]
        self.split, self.name, self.streaming = asked.split, asked.name, asked.streaming
        self._known = self._revision if is_commit(self._revision) else commit

    @property
    def revision(self) -> str | None:
        """The commit; None where the hub does not say which one it is: then no document can be read."""
        return self._commit if isinstance(self._commit, str) else None

    @cached_property
    def _commit(self) -> str | Problem:
        """Asked for once, so that the commit that is recorded and the documents that are read cannot differ."""
        return self._known or self._repository.commit()

    @property
    def _repository(self) -> Repository:
        return Repository(self.source, "dataset", self._revision, "data set")

    @cached_property
    def _data(self) -> Any:
        from datasets import load_dataset

        if isinstance(self._commit, Problem):
            raise self._commit.error(CorpusError)
        try:
            data = load_dataset(self.source, self.name, split=self.split, revision=self._commit, streaming=self.streaming)
        except Exception as error:  # whatever a data set's builder or the network raises
            raise self._failure(error) from error
        # Other columns need not be read where the text is known to be there.
        needed = self.fields.columns(data.column_names or ())
        data = data if needed is None else data.select_columns(needed)
        if self._asked.shuffle is None:
            return data
        return data.shuffle(seed=self._asked.shuffle, **({"buffer_size": SHUFFLE_BUFFER} if self.streaming else {}))

    def _failure(self, error: Exception) -> CorpusError:
        problem = self._repository.explain(error)
        if problem is None and "gated" in str(error):  # datasets hides the cause of its own error
            problem = self._repository.gated()
        if problem is not None:
            return CorpusError(problem.what, problem.hint)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        return CorpusError(f"The data set {self.source} cannot be loaded: {reason}.", _OTHERWISE)

    def rows(self, start: int = 0) -> Iterator[Row]:
        data = self._data.skip(start) if start else self._data
        try:
            yield from data
        except Exception as error:
            what = self._failure(error).what.partition(" cannot be loaded: ")[2] or self._failure(error).what
            raise CorpusError(f"Data set {self.source!r} broke off: {what}", "Run the same command again.") from error

    @property
    def unshuffled(self) -> Corpus:
        return self if self._asked.shuffle is None else HubCorpus(replace(self._asked, shuffle=None), self._commit)

    def fingerprint(self) -> dict[str, str]:
        facts = {
            "hub": self.source,
            "config": self.name,
            "split": self.split,
            "revision": self.revision,
            **self.fields.facts(),
            "shuffle": None if self._asked.shuffle is None else str(self._asked.shuffle),
            "shuffle_buffer": str(SHUFFLE_BUFFER) if self._asked.shuffle is not None and self.streaming else None,
        }
        return {key: value for key, value in facts.items() if value is not None}
