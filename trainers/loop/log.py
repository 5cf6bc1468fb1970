"""The log of a run: metrics in `metrics.jsonl`, times in `timing.jsonl`, and Weights & Biases if asked for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from saekit.errors import ConfigError
from saekit.files import open_append, record
from saekit.json_files import parse_json, read_bytes

TIMING = "timing.jsonl"
_MEND = "Restore the file from a copy, or correct the line."
_MAX_BYTES = 2**30


class Log:
    """Rows of metrics. Times go to another file, so that a resumed run ends with the same bytes as an uninterrupted one.

    Args:
        path: the file of metrics. `timing.jsonl` in the same folder has, for each row, the Unix time at which the process
            `began`, and the `seconds` from then until `tokens`.
        position: bytes of the file to keep. Rows that a killed run wrote after its last checkpoint are dropped.
        wandb: a Weights & Biases project, or None.
        config: settings that Weights & Biases shows with the curves.

    Raises:
        ConfigError: Weights & Biases refuses the run.
        WorkspaceError: a file cannot be opened, or is a symbolic link.
    """

    def __init__(self, path: Path, position: int, wandb: str | None, config: dict[str, Any]) -> None:
        self._path, self._file = path, open_append(path)
        self._file.truncate(min(position, self.position))  # the file may have been lost
        self._timing = open_append(path.with_name(TIMING), truncate=not position)
        self._began, self._clock = time.time(), time.monotonic()
        self._run: Any = None
        if wandb is not None:
            import wandb as client

            # The same folder and settings give the same ID, so that a resumed run goes on under it.
            identity = hashlib.sha256(f"{path.resolve()} {json.dumps(config, sort_keys=True)}".encode()).hexdigest()[:16]
            try:
                self._run = client.init(
                    project=wandb,
                    id=identity,
                    resume="allow",
                    reinit="create_new",  # several dictionaries may be trained at the same time
                    config=config,
                    dir=os.environ.get("WANDB_DIR") or path.parent,
                    name=path.parent.name,
                )
            except client.Error as error:
                hint = "Log in with `wandb login`, or set WANDB_MODE=offline."
                raise ConfigError(f"Weights & Biases refuses the run: {error}.", hint) from error

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()
        times = {"began": self._began, "tokens": row["tokens"], "seconds": round(time.monotonic() - self._clock, 3)}
        self._timing.write(json.dumps(times).encode() + b"\n")
        self._timing.flush()
        if self._run is not None:
            self._run.log(row, step=row["step"])

    def rows(self) -> list[dict[str, Any]]:
        """The rows so far, those from before an interruption included; see :func:`read_log`."""
        return read_log(self._path)

    @property
    def position(self) -> int:
        """Bytes written so far. They are forced to the disk, because a checkpoint that records them must not get there first."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.seek(0, 2)

    def close(self) -> None:
        for file, path in ((self._file, self._path), (self._timing, self._path.with_name(TIMING))):
            file.close()
            with contextlib.suppress(OSError):  # a full disk: the rows are kept without a checksum
                record(path)
        if self._run is not None:
            self._run.finish()


class NoLog:
    """The log of a process that does not write."""

    position = 0

    def write(self, row: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl` or a `timing.jsonl`, in order. An unfinished last line of a killed run is skipped.

    Raises:
        WorkspaceError: the file cannot be read, or a line is not a JSON object.
    """
    if not path.exists():
        return []
    lines = read_bytes(path, hint=_MEND, max_bytes=_MAX_BYTES).splitlines(keepends=True)
    return [
        parse_json(line, where=f"{path}, line {number}", hint=_MEND, finite=False)
        for number, line in enumerate(lines, start=1)
        if line.endswith(b"\n")
    ]


def outcome(folder: Path) -> dict[str, float]:
    """What the log of a finished run says at its end, as far as it is known.

    Returns:
        epochs: passes over the same tokens that the run made.
        fvu_train: FVU over the last tenth of the run.
        fvu: FVU on held-out documents.

    Raises:
        WorkspaceError: the log is damaged.
    """
    last = {name: value for row in read_log(folder / "metrics.jsonl") for name, value in row.items()}
    names = {"epochs": "epochs", "fvu_train": "train/fvu", "fvu": "heldout/fvu"}
    return {name: float(last[key]) for name, key in names.items() if isinstance(last.get(key), int | float)}
