"""The generated documents of the laboratory as a corpus."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Literal, cast

from saekit.activations.corpus.base import Corpus, CorpusSource
from saekit.activations.corpus.fields import Fields
from saekit.builtin import NAME, is_lab, warn_if_shadowing
from saekit.errors import ConfigError, CorpusError

if TYPE_CHECKING:
    from saekit.lab import Document

DOCUMENTS = 400_000
"""Documents of each name and split: about as many as the packaged model was trained on."""
_SYNTAX = re.compile(rf"{NAME}(?::(\w+))?(?:@(\d+))?")
_SAMPLED = 256


def open_lab(asked: CorpusSource) -> Corpus | None:
    """The corpus of a name like `lab` or `lab:facts@3`; None for other sources.

    Raises:
        ConfigError: it is to be shuffled.
        CorpusError: see :class:`LabCorpus`.
    """
    if not isinstance(asked.source, str) or not is_lab(asked.source):
        return None
    asked.refuse("the built-in corpus", takes=("split",))
    if asked.shuffle is not None:
        raise ConfigError(f"The documents of {asked.source} are in random order already.", "Leave shuffle out.")
    return LabCorpus(asked.source, asked.split, asked.fields)


class LabCorpus(Corpus):
    """Documents of the laboratory: `lab` is all genres in the proportions of training, `lab:facts` one genre.

    `@7` after either name sets the seed, which is 0 by default. Splits are "train" and "heldout". Documents are generated when
    they are read.

    Raises:
        CorpusError: there is no such genre or split, or the name has another form.
    """

    def __init__(self, source: str, split: str = "train", fields: str | Fields = "text") -> None:
        super().__init__(source, fields)
        match = _SYNTAX.fullmatch(source)
        if match is None:
            raise CorpusError(
                f"{source!r} is no corpus of the laboratory.", "Write lab, lab:GENRE, or with a seed lab@1 or lab:GENRE@1."
            )
        self.genre, self.seed = match[1], int(match[2] or 0)
        self.split = cast(Literal["train", "heldout"], split)
        try:
            self._documents(0)
        except ConfigError as error:
            raise CorpusError(f"{source!r}: {error.what}", error.hint) from error
        warn_if_shadowing(source)

    def _documents(self, start: int) -> Iterator[Document]:
        from saekit import lab

        left = max(0, DOCUMENTS - start)
        return lab.documents(genre=self.genre, split=self.split, seed=self.seed, n=left, start=start)

    def rows(self, start: int = 0) -> Iterator[str]:
        for document in self._documents(start):
            yield document.text

    def fingerprint(self) -> dict[str, str]:
        """The parts of the name, and a hash of the first documents, which differs between versions of the generator."""
        return {
            "lab": self.genre or "all genres",
            "split": self.split,
            "seed": str(self.seed),
            "documents": str(DOCUMENTS),
            "sha256": self._digest,
            **({} if self.fields.where is None else {"where": self.fields.where}),
        }

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256("\0".join(islice(self.rows(), _SAMPLED)).encode()).hexdigest()
