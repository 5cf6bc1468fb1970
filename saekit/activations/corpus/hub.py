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

SHUFFLE_BUFFER = 10_000
"""Documents of a streamed data set among which the next one is drawn when it is shuffled."""


def open_hub(asked: CorpusSource) -> Corpus | None:
    """The data set of that name; None where the source is not a name."""
    return HubCorpus(asked) if isinstance(asked.source, str | Path) else None


class HubCorpus(Corpus):
    """A data set that :func:`datasets.load_dataset` loads. It is looked up when documents are first read."""

    def __init__(self, asked: CorpusSource) -> None:
        super().__init__(str(asked.source), asked.fields)
        self._asked = asked
        self._revision = asked.revision if asked.revision is None or isinstance(asked.revision, str) else asked.revision[0]
        self.split, self.name, self.streaming = asked.split, asked.name, asked.streaming

    @cached_property
    def revision(self) -> str | None:
        """The commit, so that versions of a data set that changes are not mixed; what was asked for where the hub cannot say."""
        from huggingface_hub import HfApi

        try:
            return HfApi().dataset_info(self.source, revision=self._revision).sha
        except Exception:  # offline, private, or a name that only load_dataset knows: its message is better
            return self._revision

    @cached_property
    def _data(self) -> Any:
        from datasets import load_dataset
        from datasets.exceptions import DatasetNotFoundError

        try:
            data = load_dataset(self.source, self.name, split=self.split, revision=self.revision, streaming=self.streaming)
        except DatasetNotFoundError as error:
            raise CorpusError(
                f"There is neither a file {self.source!r} nor a data set of that name on the hub that you can read.",
                "Check the name; log in if it is private.",
            ) from error
        except ConnectionError as error:
            raise CorpusError(
                f"{self.source!r} is no local file, and the hub cannot be reached.", "Check the network, or give a local file."
            ) from error
        except Exception as error:  # whatever a data set's builder or the network raises
            raise CorpusError(
                f"Data set {self.source!r} cannot be loaded: {error}", "Check its configuration (name) and split."
            ) from error
        # Other columns need not be read where the text is known to be there.
        needed = self.fields.columns(data.column_names or ())
        data = data if needed is None else data.select_columns(needed)
        if self._asked.shuffle is None:
            return data
        return data.shuffle(seed=self._asked.shuffle, **({"buffer_size": SHUFFLE_BUFFER} if self.streaming else {}))

    def rows(self, start: int = 0) -> Iterator[Row]:
        data = self._data.skip(start) if start else self._data
        try:
            yield from data
        except Exception as error:
            raise CorpusError(f"Data set {self.source!r} broke off: {error}", "Run the same command again.") from error

    @property
    def unshuffled(self) -> Corpus:
        return self if self._asked.shuffle is None else HubCorpus(replace(self._asked, shuffle=None))

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
