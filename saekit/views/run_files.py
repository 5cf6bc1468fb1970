"""The files that a training run leaves in its folder, which somebody may have edited or damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saekit.errors import ConfigError, WorkspaceError
from saekit.json_files import read_json

Row = dict[str, Any]

METRICS = (
    "loss",
    "fvu",
    "fvu_trimmed",
    "l0",
    "dead_fraction",
    "cosine",
    "shrinkage",
    "dense_fraction",
    "lr",
    "sparsity",
    "threshold",
)
"""Names in the log that pages show; with "heldout/" before them they are of held-out documents."""
_HINT = "Restore the file from a copy, or train the dictionary again."


def read_settings(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The resolved settings and the data of a run, from its `train.json`.

    Returns:
        config: as `TrainConfig.to_dict` gives it, with a number of tokens.
        data: what was trained on: `site`, `site_out`, `live`, ...

    Raises:
        WorkspaceError: the file is missing or damaged.
    """
    from trainers import TrainConfig

    data = read_json(path, hint=_HINT).get("data")
    try:
        config = TrainConfig.load(path).to_dict()
    except ConfigError as fault:
        raise WorkspaceError(fault.what, fault.hint) from fault
    if not isinstance(data, dict):
        raise WorkspaceError(f"{path} does not say what was trained on.", _HINT)
    if type(config["tokens"]) is not int or config["tokens"] < 1 or type(config["l0"]) is not int:
        raise WorkspaceError(f"{path} does not say how many tokens were trained on, and with which L0.", _HINT)
    return config, data


def read_rows(path: Path, *required: str) -> list[Row]:
    """The rows of a `metrics.jsonl` or a `timing.jsonl`, in order; an empty list for a missing file.

    A last line without a line break was left unfinished by a killed run, and is not a row. Metrics can be NaN, since a run can
    diverge.

    Args:
        required: names that every row has a number for.

    Raises:
        WorkspaceError: a line is not JSON, or something that pages show is not a number.
    """
    from trainers.loop.log import read_log

    rows = read_log(path)
    for number, row in enumerate(rows, start=1):
        where = f"{path}, line {number}"
        if missing := [name for name in required if row.get(name) is None]:
            raise WorkspaceError(f"{where}: {missing[0]} is missing.", _HINT)
        for name, value in row.items():
            shown = name in required or name.removeprefix("heldout/") in METRICS
            if shown and value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise WorkspaceError(f"{where}: {name} is {value!r}, not a number.", _HINT)
    return rows
