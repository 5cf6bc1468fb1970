"""Rows of the local file formats that hold text. A row is a string, or a record with a field that holds one.

`datasets` reads these formats, too. But it turns the texts "NA" and "null" of a CSV file into missing values, refuses lines of
JSON that are strings, does not say which line is damaged, and takes four times as long. Parquet and arrow files are read by
pyarrow, as `datasets` does; through `datasets` it takes 1.6 times as long. :mod:`.saved` reads folders that `datasets` saved.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from saekit.activations.corpus.fields import Fields
from saekit.errors import CorpusError

Row = str | Mapping[str, Any]

COMPRESSIONS = (".gz", ".zst", ".bz2")
_MARKER = "<|endoftext|>"
_ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"  # the marker and the length 0, which end a stream


class JsonLine(NamedTuple):
    """A row that is not decoded yet, so that rows can be skipped quickly."""

    path: Path
    number: int
    """Line of the file, from 1."""
    text: str

    def decode(self) -> Any:
        """Decode the line.

        Raises:
            CorpusError: the line is not valid JSON.
        """
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError) as error:
            what = "is nested too deeply" if isinstance(error, RecursionError) else f"is not valid JSON: {error}"
            raise CorpusError(f"{self.path}, line {self.number} {what}.", "Correct that line.") from error


def read_rows(path: Path, fields: Fields) -> Iterator[Row | JsonLine]:
    """Read the rows of one file in order. Only `.json` files that hold an array are read into memory as a whole.

    - `.txt`: each line is a document. If the first MiB contains `<|endoftext|>`, documents are the texts between these markers.
    - `.jsonl`, `.ndjson`: an object or a string on each line. `.json`: an array of these, or one on each line.
    - `.csv`, `.tsv`: records below a header. `.parquet`, `.arrow`: records.

    All but the last two may be compressed (`.gz`, `.zst`, `.bz2`). A byte order mark at the beginning of a text file is skipped.

    Raises:
        CorpusError: the file does not parse; the message says where.
    """
    with _typed(path):
        yield from _READERS[file_format(path)](path, fields)


@contextlib.contextmanager
def _typed(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8: {error.reason}.", "Convert it to UTF-8 first.") from error
    except json.JSONDecodeError as error:
        raise CorpusError(f"{path} is not valid JSON: {error}.", "Correct the file.") from error
    except RecursionError as error:
        raise CorpusError(f"{path} is nested too deeply.", "Is it a corpus?") from error
    except (OSError, ValueError, EOFError, csv.Error) as error:
        raise CorpusError(
            f"{path} cannot be read: {error}.", "Is it damaged, or of another format than its name says?"
        ) from error


def file_format(path: Path) -> str:
    """`.jsonl` for `x.jsonl` and for `x.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_compressed(path: Path) -> bool:
    """Whether the name of a file ends with one of :data:`COMPRESSIONS`."""
    return path.suffix.lower() in COMPRESSIONS


def _open(path: Path) -> TextIO:
    import io

    import pyarrow as pa

    # utf-8-sig skips a byte order mark. The empty newline keeps \r\n as it is, as the csv module requires.
    stream = io.BufferedReader(pa.input_stream(str(path), compression="detect"))
    return io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")


def _txt(path: Path, fields: Fields) -> Iterator[Row]:
    with _open(path) as file:
        marked = _MARKER in file.read(2**20)
    with _open(path) as file:
        if not marked:
            yield from (line.strip() for line in file)
            return
        lines: list[str] = []
        for line in file:
            *ended, rest = line.split(_MARKER)
            for part in ended:
                yield "".join([*lines, part]).strip()
                lines = []
            lines.append(rest)
        yield "".join(lines).strip()


def _jsonl(path: Path, fields: Fields) -> Iterator[JsonLine]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield JsonLine(path, number, line)


def _json(path: Path, fields: Fields) -> Iterator[Row | JsonLine]:
    with _open(path) as file:
        lines = not file.read(2**16).lstrip().startswith("[")
    if lines:
        yield from _jsonl(path, fields)
    else:
        with _open(path) as file:
            yield from json.load(file)


def _csv(path: Path, fields: Fields) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    with _open(path) as file:
        yield from csv.DictReader(file, delimiter="\t" if file_format(path) == ".tsv" else ",")


def _parquet(path: Path, fields: Fields) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        # Only what is needed is decoded. A file without a field gives whole records, so that the error can name their fields.
        columns = fields.columns(file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=256, columns=columns):
            yield from batch.to_pylist()


def _arrow(path: Path, fields: Fields) -> Iterator[Row]:
    import pyarrow as pa

    check_arrow(path)
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
        for batch in stream:
            columns = fields.columns(batch.schema.names)
            yield from (batch if columns is None else batch.select(columns)).to_pylist()


def check_arrow(path: Path) -> None:
    """Raise unless an arrow stream is complete. Readers take a file that is cut short for one with fewer rows.

    Raises:
        CorpusError: it is cut short, or cannot be read.
    """
    with _typed(path), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_ARROW_END)))
        if file.read() != _ARROW_END:
            raise ValueError("it does not end as an arrow stream does")


_READERS: dict[str, Callable[[Path, Fields], Iterator[Row | JsonLine]]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
FORMATS = tuple(_READERS)
