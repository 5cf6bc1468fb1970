"""Corpora in files of this machine."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from saekit.activations.corpus.base import Corpus, CorpusSource, decoded
from saekit.activations.corpus.fields import Fields
from saekit.activations.corpus.formats import COMPRESSIONS, FORMATS, JsonLine, Row, file_format, is_compressed, read_rows
from saekit.activations.corpus.shuffled import shuffled
from saekit.errors import CorpusError

_EXPANSION = 5  # bytes of text in a byte of a compressed file, roughly


def open_files(asked: CorpusSource) -> Corpus | None:
    """The corpus of a path; None where the source can only be the name of a data set on the hub.

    Raises:
        CorpusError: the source is a path, and there is no such file or folder.
    """
    if not isinstance(asked.source, str | Path):
        return None
    path = Path(asked.source).expanduser()
    if path.exists():
        asked.refuse("a local folder" if path.is_dir() else "a local file")
        return shuffled(FileCorpus(path, asked.fields, asked.split), asked.shuffle)
    if _looks_like_a_path(asked.source):
        raise CorpusError(f"There is no file or folder {str(asked.source)!r}.", "Give one, or the name of a data set on the hub.")
    return None


def _looks_like_a_path(source: str | Path) -> bool:
    text = str(source)
    return (
        isinstance(source, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1 or file_format(Path(text)) in FORMATS
    )


class FileCorpus(Corpus):
    """The rows of a file, or of all files below a folder, in the order of the names of the files.

    Args:
        path: the file or folder.
        text_field: field of a record that holds its text, or what else of a record is read.
        split: of a folder that `datasets` saved with several splits.

    Raises:
        CorpusError: the folder lacks the split, or there is no file of a known format.
    """

    def __init__(self, path: Path, text_field: str | Fields, split: str) -> None:
        super().__init__(str(path), text_field)
        self.files = [file.absolute() for file in _files(path, split)]  # they are read later, perhaps from another folder

    def raw_rows(self) -> Iterator[Row | JsonLine]:
        return itertools.chain.from_iterable(read_rows(path, self.fields) for path in self.files)

    def rows(self, start: int = 0) -> Iterator[Row]:
        return map(decoded, itertools.islice(self.raw_rows(), start, None))

    @property
    def size(self) -> int:
        return sum(path.stat().st_size * (_EXPANSION if is_compressed(path) else 1) for path in self.files)

    def fingerprint(self) -> dict[str, str]:
        return {"sha256": self._digest, **self.fields.facts()}

    @cached_property
    def _digest(self) -> str:
        digests = []
        for path in self.files:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _files(path: Path, split: str) -> list[Path]:
    formats = FORMATS
    if path.is_dir():
        if (path / "dataset_dict.json").exists():
            path = path / split
            if not path.exists():
                splits = ", ".join(sorted(child.name for child in path.parent.iterdir() if child.is_dir()))
                raise CorpusError(f"{path.parent} has no split {split!r}; it has {splits}.")
        if (path / "state.json").exists():  # a folder of datasets.save_to_disk: its .json files are no documents
            formats = (".arrow",)
        found = sorted(child for child in path.rglob("*") if child.is_file() and file_format(child) in formats)
        files = [child for child in found if not any(part.startswith(".") for part in child.relative_to(path).parts)]
    else:
        files = [path] if file_format(path) in formats else []
    if not files:
        what = "holds no file" if path.is_dir() else "is not a file"
        raise CorpusError(
            f"{path} {what} of a known format.", f"Known: {', '.join(FORMATS)}; compressed: {', '.join(COMPRESSIONS)}."
        )
    return files
