"""Files of weight deltas: safetensors with the facts and a checksum in the header. Mostly empty tensors are stored sparse."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from saekit.errors import InterventionError, SaekitError
from saekit.json_files import parse_json
from saekit.steer.weights.delta import WeightDelta, checksum
from saekit.tensor_files import SUFFIX, read_tensors, write_tensors

FORMAT = "saekit-weight-delta"
VERSION = 1
MAX_BYTES = 1 << 38
_HINT = "Choose a file that `saekit edit` wrote."
_KINDS = ("dense", "left", "right", "values", "index")


def save_delta(delta: WeightDelta, path: Path) -> None:
    """Write a delta, whole or not at all.

    A dense tensor is stored as its numbers that are not zero and their places (int32 or int64, in the flattened tensor) where
    that is smaller.

    Raises:
        InterventionError: the name does not end in .safetensors, or the facts hold something that JSON cannot.
        StorageFull: there is no room for the file.
    """
    check_name(path)
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for key, tensor in delta.parts().items():
        kind, _, name = key.partition(":")
        sparse = _sparse(tensor) if kind == "dense" else None
        if sparse is None:
            stored[key] = tensor.contiguous()
        else:
            shapes[name] = list(tensor.shape)
            stored[f"values:{name}"], stored[f"index:{name}"] = sparse
    head = {"format": FORMAT, "version": VERSION, "shapes": shapes, "facts": dict(delta.facts)}
    try:
        content = json.dumps({**head, "sha256": checksum(stored, head)}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InterventionError(f"The delta cannot be written to {path}: {error}.", "Keep to JSON values in facts.") from error
    parse_json(content, where=f"The delta for {path}", error=InterventionError)
    write_tensors(path, stored, content)


def check_name(path: Path) -> None:
    """Refuse names that do not end in .safetensors, before long work.

    Raises:
        InterventionError: the name ends otherwise.
    """
    if path.suffix != SUFFIX:
        raise InterventionError(f"The file {path} cannot hold a weight delta.", f"Give a name that ends in {SUFFIX}.")


def load_delta(path: Path) -> WeightDelta:
    """Read what :func:`save_delta` wrote.

    Raises:
        InterventionError: there is no such file, it holds no delta, or it was changed after it was written.
    """
    head, stored = read_tensors(path, "a weight delta", error=InterventionError, hint=_HINT, max_bytes=MAX_BYTES)
    if head.get("format") != FORMAT or set(head) != {"format", "version", "shapes", "facts", "sha256"}:
        raise InterventionError(f"{path} does not hold a weight delta.", _HINT)
    if head["version"] != VERSION:
        raise InterventionError(f"{path} has version {head['version']!r:.20}; this saekit reads {VERSION}.", "Update saekit.")
    if head.pop("sha256") != checksum(stored, head):
        raise InterventionError(f"{path} was changed after it was written: its checksum differs.", "Make the edit again.")
    tensors: dict[str, Tensor] = {}
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    try:
        for key, tensor in stored.items():
            kind, _, name = key.partition(":")
            if kind not in _KINDS:
                raise InterventionError(f"{path} holds an unknown tensor {key}.", _HINT)
            if kind == "dense":
                tensors[name] = tensor
            elif kind == "values":
                whole = torch.zeros(head["shapes"][name], dtype=tensor.dtype)
                whole.view(-1)[stored[f"index:{name}"].long()] = tensor
                tensors[name] = whole
            elif kind == "left":
                factors[name] = tensor, stored[f"right:{name}"]
        return WeightDelta(tensors, head["facts"], factors)
    except (SaekitError, KeyError, TypeError, RuntimeError, IndexError, AttributeError) as error:
        raise InterventionError(f"{path} does not hold a weight delta: {error}", _HINT) from error


def _sparse(tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """Numbers that are not zero and their places, where these take less room than the tensor."""
    flat = tensor.contiguous().view(-1)
    kind = torch.int32 if flat.numel() < 2**31 else torch.int64
    number = int(flat.count_nonzero())
    if number * (flat.element_size() + kind.itemsize) >= flat.numel() * flat.element_size():
        return None
    places = flat.nonzero().squeeze(1)
    return flat[places], places.to(kind)
