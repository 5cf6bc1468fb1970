"""The files that a training run leaves in its folder, which somebody may have edited or damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from saekit.errors import ConfigError, WorkspaceError
from saekit.json_files import parse_json, read_json

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
_HINT = "Train the dictionary again, or restore the file."


def read_settings(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The resolved settings and the data of a run, from its `train.json`.

    Returns:
        config: as `TrainConfig.to_dict` gives it, with a number of tokens.
        data: what was trained on: `site`, `site_out`, `live`, ...

    Raises:
        WorkspaceError: the file is missing or damaged.
    """
    from trainers import TrainConfig

    settings = read_json(path, hint=_HINT)
    config, data = settings.get("config"), settings.get("data")
    if not isinstance(config, dict) or not isinstance(data, dict):
        raise WorkspaceError(f"{path} does not hold the settings and the data of a training run.", _HINT)
    if type(config.get("tokens")) is not int or config["tokens"] < 1 or type(config.get("l0")) is not int:
        raise WorkspaceError(f"{path} does not say how many tokens were trained on, and with which L0.", _HINT)
    try:
        return TrainConfig.from_dict(config).to_dict(), data
    except (ConfigError, TypeError, ValueError) as fault:
        raise WorkspaceError(f"{path} is damaged: {fault}", _HINT) from fault


def read_rows(path: Path, *required: str) -> list[Row]:
    """The rows of a `metrics.jsonl` or a `timing.jsonl`, in order; none where there is no file.

    A last line without a line break was left unfinished by a killed run, and is not a row. Metrics can be NaN, since a run can
    diverge.

    Args:
        required: names that every row has a number for.

    Raises:
        WorkspaceError: a line is not JSON, or something that pages show is not a number.
    """

    def refuse(number: int, what: str) -> NoReturn:
        raise WorkspaceError(f"{path}, line {number}: {what}.", _HINT)

    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else (), 1):
        if not line.endswith(b"\n"):
            continue
        row: Row = parse_json(line, where=f"{path}, line {number}", hint=_HINT, finite=False)
        for name in required:
            if row.get(name) is None:
                refuse(number, f"{name} is missing")
        for name, value in row.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if (name in required or name.removeprefix("heldout/") in METRICS) and not is_number and value is not None:
                refuse(number, f"{name} is {value!r}, not a number")
        rows.append(row)
    return rows


def outcome(folder: Path) -> dict[str, float]:
    """What the log of a finished run says at its end, as far as it is known.

    Returns:
        epochs: passes over the cached activations that the run made.
        fvu_train: FVU over the last tenth of the run.
        fvu: FVU on held-out documents.

    Raises:
        WorkspaceError: the log is damaged.
    """
    last = {name: value for row in read_rows(folder / "metrics.jsonl") for name, value in row.items()}
    names = {"epochs": "epochs", "fvu_train": "train/fvu", "fvu": "heldout/fvu"}
    return {name: float(last[key]) for name, key in names.items() if isinstance(last.get(key), int | float)}
