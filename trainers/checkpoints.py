"""Checkpoints: a folder each, whole or absent, that holds all of a run's state and the SAE as it is by then.

checkpoints/step-000012000/
    cfg.json, sae_weights.safetensors   the SAE, for any use: the input scale is folded in
    state.safetensors, state.json       what resuming needs, in the units of training
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saekit.errors import CheckpointError
from saekit.files import PARTIAL, replace, sync
from saekit.sae import SAE

_STATE = "state"


def save(folder: Path, step: int, sae: SAE, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], keep: int) -> None:
    """Write the checkpoint of `step` into `folder`, then drop all but the last `keep`. If that fails, those before are kept."""
    from safetensors.torch import save_file

    final = folder / f"step-{step:09d}"
    beside = folder / f".{final.name}{PARTIAL}"
    try:
        shutil.rmtree(beside, ignore_errors=True)
        sae.save(beside)
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, beside / f"{_STATE}.safetensors")
        (beside / f"{_STATE}.json").write_text(json.dumps(facts))
        for name in (f"{_STATE}.safetensors", f"{_STATE}.json", "."):
            sync(beside / name)
        shutil.rmtree(final, ignore_errors=True)
        replace(beside, final)
    except Exception:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old)


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
    """Remove all checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))
