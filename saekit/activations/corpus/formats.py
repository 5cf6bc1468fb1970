"""Rows of the local file formats that hold text. A row is a string, or a record with a field that holds one."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from saekit.errors import CorpusError

Row = str | Mapping[str, Any]

COMPRESSIONS = (".gz", ".zst", ".bz2")
_MARKER = "<|endoftext|>"


def read_rows(path: Path, text_field: str) -> Iterator[Row]:
    """The rows of one file, in its order, without holding the file in memory (but for `.json`).

    - `.txt`: a line is a document; where the first MiB contains `<|endoftext|>`, documents are what lies between these instead.
    - `.jsonl`, `.ndjson`: an object or a string a line. `.json`: an array of them, or one a line.
    - `.csv`, `.tsv`: records under a header. `.parquet`, `.arrow`: records.

    All but the last two may be compressed (`.gz`, `.zst`, `.bz2`).

    Raises:
        CorpusError: the file does not parse; the message says where.
    """
    try:
        yield from _READERS[file_format(path)](path, text_field)
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8: {error.reason}.", "Convert it first.") from error
    except json.JSONDecodeError as error:
        raise CorpusError(f"{path} is not valid JSON: {error}.", "Correct or remove that line.") from error
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


def _open(path: Path) -> TextIO:
    import io

    import pyarrow as pa

    # The empty newline keeps \r\n as it is, which the csv module asks for.
    return io.TextIOWrapper(io.BufferedReader(pa.input_stream(str(path), compression="detect")), encoding="utf-8", newline="")


def _txt(path: Path, text_field: str) -> Iterator[Row]:
    with _open(path) as file:
        marked = _MARKER in file.read(2**20)
    with _open(path) as file:
        if not marked:
            yield from (line.strip() for line in file)
            return
        document = ""
        for line in file:
            document += line
            while _MARKER in document:
                before, document = document.split(_MARKER, 1)
                yield before.strip()
        yield document.strip()


def _jsonl(path: Path, text_field: str) -> Iterator[Row]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise CorpusError(
                        f"{path}, line {number} is not valid JSON: {error}.", "Correct or remove the line."
                    ) from error


def _json(path: Path, text_field: str) -> Iterator[Row]:
    with _open(path) as file:
        lines = not file.read(2**16).lstrip().startswith("[")
    if lines:
        yield from _jsonl(path, text_field)
    else:
        with _open(path) as file:
            yield from json.load(file)


def _csv(path: Path, text_field: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    with _open(path) as file:
        yield from csv.DictReader(file, delimiter="\t" if file_format(path) == ".tsv" else ",")


def _parquet(path: Path, text_field: str) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        # Only the text is decoded; a file without it gives whole records, so that the error can name their fields.
        columns = [text_field] if text_field in file.schema_arrow.names else None
        for batch in file.iter_batches(batch_size=256, columns=columns):
            yield from batch.to_pylist()


def _arrow(path: Path, text_field: str) -> Iterator[Row]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
        for batch in stream:
            yield from (batch.select([text_field]) if text_field in batch.schema.names else batch).to_pylist()


_READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
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
