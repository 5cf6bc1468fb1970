"""Folders of edited models, which transformers loads, and the way back to the unedited weights bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from saekit.errors import InterventionError
from saekit.files import replace, temporary_folder
from saekit.steer.weights.delta import WeightDelta, tensors_sha256
from saekit.tensor_files import read_tensors, write_tensors

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

RECORD = "saekit_edit.safetensors"
"""File in the folder of an edited model: the unedited tensors, and the facts of the edits."""
FORMAT = "saekit-edited-model"
VERSION = 1
_MAX_BYTES = 1 << 38
_HINT = "Choose a folder that `saekit edit apply` wrote."


def write_edited(lm: LanguageModel, deltas: Sequence[WeightDelta], out: str | Path) -> None:
    """Write an edited model with its tokenizer as a folder that transformers loads. It appears as a whole.

    The folder also holds the unedited tensors, for :func:`write_reverted`. The model in memory is unedited afterwards.

    Args:
        lm: the unedited model.
        deltas: what is added.
        out: a folder that does not exist.

    Raises:
        InterventionError: something exists at `out`, or the deltas do not fit.
        StoreMismatch: a delta was made for another model.
    """
    names = sorted({name for delta in deltas for name in delta.names})
    with _folder(out) as temporary:
        parameters = dict(lm.model.named_parameters(remove_duplicate=False))
        for delta in deltas:
            delta.check(lm)
        originals = {name: parameters[name].detach().cpu().clone() for name in names}
        fingerprint = lm.fingerprint()
        with lm.edited(*deltas):
            edited = {name: parameters[name].detach().cpu() for name in names}
            head = {
                "format": FORMAT,
                "version": VERSION,
                "model": lm.name,
                "fingerprint": fingerprint,
                "edits": [dict(delta.facts) for delta in deltas],
                "edited": tensors_sha256(edited),
                "unedited": tensors_sha256(originals),
            }
            _save(lm, temporary)
        write_tensors(temporary / RECORD, originals, json.dumps(head, allow_nan=False))


def write_reverted(lm: LanguageModel, folder: str | Path, out: str | Path) -> None:
    """Write the unedited model of a folder that :func:`write_edited` wrote.

    Args:
        lm: the model of the folder. Its weights are the unedited ones afterwards.
        folder: where the record of the edit is.
        out: a folder that does not exist.

    Raises:
        InterventionError: the folder holds no such record or it was changed, the weights are not those that the edit made, or
            something exists at `out`.
    """
    path = Path(folder) / RECORD
    head, originals = read_tensors(path, "the record of an edit", error=InterventionError, hint=_HINT, max_bytes=_MAX_BYTES)
    if head.get("format") != FORMAT or head.get("version") != VERSION:
        raise InterventionError(f"{path} does not hold the record of an edit.", _HINT)
    if head.get("unedited") != tensors_sha256(originals):
        raise InterventionError(f"{path} was changed after it was written: its checksum differs.", "Apply the edit again.")
    parameters = dict(lm.model.named_parameters(remove_duplicate=False))
    if missing := sorted(originals.keys() - parameters.keys()):
        raise InterventionError(f"The model in {folder} has no parameter {missing[0]}.", _HINT)
    now = {name: parameters[name].detach().cpu() for name in originals}
    if tensors_sha256(now) != head.get("edited"):
        raise InterventionError(
            f"The weights in {folder} are not those that the edit made.",
            "They were changed afterwards, or loaded in another dtype: leave --dtype out.",
        )
    with _folder(out) as temporary:
        with torch.no_grad():
            for name, values in originals.items():
                parameters[name].data.copy_(values)
        _save(lm, temporary)


def edits_in(folder: str | Path) -> Mapping[str, Any]:
    """The header of the record of an edited model's folder: model, fingerprint, edits.

    Raises:
        InterventionError: it has no record.
    """
    head, _ = read_tensors(
        Path(folder) / RECORD, "the record of an edit", error=InterventionError, hint=_HINT, max_bytes=_MAX_BYTES
    )
    return head


def _save(lm: LanguageModel, folder: Path) -> None:
    lm.model.save_pretrained(folder)
    if lm.tokenizer is not None:
        lm.tokenizer.save_pretrained(folder)


@contextmanager
def _folder(out: str | Path) -> Iterator[Path]:
    """A folder that appears at `out` when the block ends without an error."""
    out = Path(out)
    if out.exists():
        raise InterventionError(f"There is already something at {out}.", "Choose another name, or remove it.")
    with temporary_folder(out.absolute().parent) as temporary:
        inside = temporary / "model"
        inside.mkdir()
        yield inside
        replace(inside, out)
