"""One Parquet file for each view of the database: `{dictionary}/features.parquet`, `labels.parquet`, `words.parquet`, ..."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from feature_db.exchange.formats import Export, Written
from feature_db.store import sql

_ROWS = 4096
_UNSAFE = re.compile(r"[^A-Za-z0-9._=,+@-]+")


def write(job: Export) -> Written:
    """Write one dictionary."""
    folder = job.folder / _UNSAFE.sub("-", job.sae.dictionary)
    folder.mkdir(parents=True)
    written = Written(job.sae.dictionary, len(job.numbers))
    whole = len(job.numbers) == job.sae.n_features
    for view in sql.views():
        with sql.reading_view(job.database.path, view, job.sae, None if whole else job.numbers) as (columns, rows):
            _write(folder / f"{view}.parquet", columns, rows)
        written.files += 1
        job.bar.update(job.done + len(job.numbers) * written.files // len(sql.views()))
    return written


def _write(path: Path, columns: dict[str, type], rows: Iterator[tuple[Any, ...]]) -> None:
    import pyarrow
    from pyarrow import parquet

    types = {int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
    with path.open("wb") as file:
        with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            while some := list(islice(rows, _ROWS)):
                arrays = [
                    pyarrow.array([None if row[i] is None else kind(row[i]) for row in some], types[kind])
                    for i, kind in enumerate(columns.values())
                ]
                writer.write_batch(pyarrow.RecordBatch.from_arrays(arrays, schema=schema))
        file.flush()
        os.fsync(file.fileno())
