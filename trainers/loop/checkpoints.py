"""Checkpoints: a folder each, whole or absent, that holds all of a run's state and the SAE as it is by then.

checkpoints/step-000012000/
    cfg.json, sae_weights.safetensors   the SAE, for any use: the input scale is folded in
    state.safetensors, state.json       what resuming needs, in the units of training
checkpoints/best-000008000/             the best so far, if it is to be kept apart; it stays when the run is finished
    cfg.json, sae_weights.safetensors
    metrics.json                        what was measured of it
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from saekit.errors import CheckpointError
from saekit.files import clean, replace, sync, temporary_folder
from saekit.sae import SAE

_STATE, _BEST, _METRICS = "state", "best", "metrics.json"


def save(folder: Path, step: int, sae: SAE, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], keep: int) -> None:
    """Write the checkpoint of `step` into `folder`, then drop all but the last `keep`. If that fails, those before are kept."""
    from safetensors.torch import save_file

    with _whole(folder / f"step-{step:09d}") as beside:
        sae.save(beside)
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, beside / f"{_STATE}.safetensors")
        (beside / f"{_STATE}.json").write_text(json.dumps(facts))
        for name in (f"{_STATE}.safetensors", f"{_STATE}.json"):
            sync(beside / name)
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old)


def save_best(folder: Path, step: int, sae: SAE, metrics: Mapping[str, float]) -> None:
    """Keep the SAE of `step` apart in `folder`, in the place of the best before it."""
    final = folder / f"{_BEST}-{step:09d}"
    with _whole(final) as beside:
        sae.save(beside)
        (beside / _METRICS).write_text(json.dumps(metrics, indent=2) + "\n")
        sync(beside / _METRICS)
    keep_best(folder, 1)


def keep_best(folder: Path, n: int) -> None:
    """Remove all but the last `n` of those kept apart; a run killed between writing one and removing the other left two."""
    found = _all(folder, _BEST)
    for old in found[: len(found) - n]:
        shutil.rmtree(old)


def best(folder: Path) -> dict[str, float] | None:
    """What was measured of the best that is kept apart in `folder`; None where none is."""
    if not (found := _all(folder, _BEST)):
        return None
    metrics: dict[str, float] = json.loads((found[-1] / _METRICS).read_text())
    return metrics


def last(folder: Path) -> Path | None:
    """The newest checkpoint."""
    return _all(folder)[-1] if _all(folder) else None


@contextmanager
def _whole(final: Path) -> Iterator[Path]:
    """A folder to fill that becomes `final` when the block ends, and leaves nothing when it fails."""
    clean(final.parent)
    with temporary_folder(final.parent) as beside:
        yield beside
        sync(beside)
        shutil.rmtree(final, ignore_errors=True)
        replace(beside, final)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """State of the newest checkpoint in `folder` as (tensors, facts); None where there is none.

    Raises:
        CheckpointError: it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (found := _all(folder)):
        return None
    try:
        return load_file(found[-1] / f"{_STATE}.safetensors"), json.loads((found[-1] / f"{_STATE}.json").read_text())
    except (OSError, ValueError, SafetensorError) as error:
        hint = f"Delete it to go on from {found[-2].name}." if len(found) > 1 else "Delete it to start anew."
        raise CheckpointError(f"{found[-1]} cannot be read: {error}.", hint) from error


def clear(folder: Path) -> None:
    """Remove all checkpoints but the best that is kept apart, and the folder if nothing else is in it."""
    keep_best(folder, 1)
    for old in _all(folder):
        shutil.rmtree(old)
    clean(folder)
    with suppress(OSError):  # not empty, or not there
        folder.rmdir()


def _all(folder: Path, kind: str = "step") -> list[Path]:
    return sorted(folder.glob(f"{kind}-*"))
