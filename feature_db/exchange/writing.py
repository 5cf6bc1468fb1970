"""Files of an export, JSON with finite numbers as whole files and as compressed lines; and files of an import."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from saekit.errors import DatabaseError
from saekit.files import write_whole


def dumped(value: Any) -> str:
    """A value as one line of JSON.

    Raises:
        DatabaseError: it holds a number that is not finite, which no reader of JSON accepts.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise DatabaseError(
            f"A feature cannot be exported: {error}.", "Run `saekit verify`, which names what is damaged."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a value as a JSON file."""
    write_whole(path, dumped(value) + "\n", checksum=False)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one line of JSON for each row. A name that ends in `.gz` is compressed; equal rows give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", compresslevel=5, fileobj=file, mtime=0) as packed:
                for row in rows:
                    packed.write((dumped(row) + "\n").encode("utf-8", "replace"))
        else:
            for row in rows:
                file.write((dumped(row) + "\n").encode("utf-8", "replace"))
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def removed_on_failure(path: Path) -> Iterator[None]:
    """Remove a file that the block made, and its folder if it is empty then, when the block fails."""
    existed = path.exists()
    try:
        yield
    except BaseException:
        if not existed:
            with suppress(OSError):
                path.unlink(missing_ok=True)
                path.parent.rmdir()
        raise
