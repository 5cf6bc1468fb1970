"""Checkpoints: folders, each complete or absent, with the whole state of a run and the SAE at that step.

checkpoints/step-000012000/
    cfg.json, sae_weights.safetensors   the SAE in the units of the data, for any use
    state.safetensors, state.json       the state in the units of training, for resuming; state.json holds checksums of both
checkpoints/best-000008000/             the best SAE so far, if `keep_best` asks for it; it stays when the run has finished
    cfg.json, sae_weights.safetensors
    metrics.json                        its metrics on held-out data
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from saekit.checksums import read_sealed, seal
from saekit.errors import CheckpointError
from saekit.files import clean, remove, replace, sync, temporary_folder
from saekit.json_files import read_json
from saekit.sae import SAE

_STATE, _BEST, _METRICS = "state", "best", "metrics.json"
_DIGEST = "sha256"  # entry with the checksum of state.safetensors
_COUNTS = ("steps", "tokens", "adam_steps", "fired_tokens", "position", "log")
_FACTS = (*_COUNTS, "window", "watch", "reads", "writes", "source", _DIGEST)
_WATCHED = ("seen", "level", "lowest")


def save(folder: Path, step: int, sae: SAE, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], keep: int) -> None:
    """Write the checkpoint of `step` into `folder`, then remove all but the last `keep`. If writing fails, earlier ones stay."""
    from safetensors.torch import save_file

    with _whole(folder / f"step-{step:09d}") as temporary:
        sae.save(temporary)
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, temporary / f"{_STATE}.safetensors")
        digest = _sha256(temporary / f"{_STATE}.safetensors")
        (temporary / f"{_STATE}.json").write_bytes(seal({**facts, _DIGEST: digest}, indent=None))
        for name in (f"{_STATE}.safetensors", f"{_STATE}.json"):
            sync(temporary / name)
    for old in _all(folder)[:-keep]:
        remove(old)


def save_best(folder: Path, step: int, sae: SAE, metrics: Mapping[str, float]) -> None:
    """Keep the SAE of `step` as the best one in `folder`, and remove the one that was the best before."""
    final = folder / f"{_BEST}-{step:09d}"
    with _whole(final) as temporary:
        sae.save(temporary)
        (temporary / _METRICS).write_text(json.dumps(metrics, indent=2) + "\n")
        sync(temporary / _METRICS)
    keep_best(folder, 1)


def keep_best(folder: Path, n: int) -> None:
    """Remove all but the last `n` best SAEs. A run that was killed while it replaced one may have left two."""
    found = _all(folder, _BEST)
    for old in found[: len(found) - n]:
        remove(old)


def best(folder: Path) -> dict[str, float] | None:
    """What was measured of the best SAE that is kept in `folder`; None if none is kept.

    Raises:
        CheckpointError: the file cannot be read or holds something else.
    """
    if not (found := _all(folder, _BEST)):
        return None
    path = found[-1] / _METRICS
    hint = f"Move {found[-1]} away: the best SAE of later steps is kept instead."
    metrics: dict[str, float] = read_json(path, error=CheckpointError, hint=hint, finite=False)
    if wrong := [name for name, value in metrics.items() if not _is_number(value)]:
        raise CheckpointError(f"{path} is damaged: {wrong[0]} is {metrics[wrong[0]]!r}.", hint)
    return metrics


def last(folder: Path) -> Path | None:
    """The newest checkpoint."""
    return _all(folder)[-1] if _all(folder) else None


@contextmanager
def _whole(final: Path) -> Iterator[Path]:
    """A folder to write into. It becomes `final` when the block ends, and is removed when the block fails."""
    clean(final.parent)
    with temporary_folder(final.parent) as temporary:
        yield temporary
        sync(temporary)
        remove(final)
        replace(temporary, final)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the state of the newest checkpoint in `folder` as (tensors, facts); None if there is no checkpoint.

    Both files are checked against their checksums. Checkpoints of earlier versions have none.

    Raises:
        CheckpointError: a file cannot be read, has changed since it was written, or holds impossible values.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (found := _all(folder)):
        return None
    path = found[-1] / f"{_STATE}.safetensors"
    hint = f"Move {found[-1]} away to {f'go on from {found[-2].name}' if len(found) > 1 else 'start from the beginning'}."
    facts = read_sealed(found[-1] / f"{_STATE}.json", _FACTS, error=CheckpointError, hint=hint, finite=False)
    try:
        digest = facts.pop(_DIGEST, None)
        if digest is not None and digest != _sha256(path):
            raise ValueError(f"{path.name} has changed since it was written")
        _check(facts)
        return load_file(path), facts
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{found[-1]} is damaged: {error}.", hint) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(facts: Mapping[str, Any]) -> None:
    """Raise ValueError where an entry is missing or has another type than :func:`save` was given."""
    for name in _COUNTS:
        value = facts.get(name)
        if type(value) is not int or not 0 <= value < 2**63:
            raise ValueError(f"{name} is {value!r}")
    window, watch = facts.get("window"), facts.get("watch")
    if not isinstance(window, list) or len(window) not in (4, 5) or not all(map(_is_number, window)):
        raise ValueError(f"window is {window!r}")
    if watch is not None and not (isinstance(watch, dict) and all(_is_number(watch.get(name)) for name in _WATCHED)):
        raise ValueError(f"watch is {watch!r}")
    for name, kinds in (("source", dict), ("reads", dict), ("writes", dict | None)):
        if not isinstance(facts.get(name), kinds):
            raise ValueError(f"{name} is {facts.get(name)!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def clear(folder: Path) -> None:
    """Remove all checkpoints except the best SAE, and the folder if nothing else is in it."""
    keep_best(folder, 1)
    for old in _all(folder):
        remove(old)
    clean(folder)
    with suppress(OSError):  # not empty, or not there
        folder.rmdir()


def _all(folder: Path, kind: str = "step") -> list[Path]:
    return sorted(path for path in folder.glob(f"{kind}-*") if path.is_dir() and not path.is_symlink())
