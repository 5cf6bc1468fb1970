"""The map between two models, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekit.errors import InterventionError, SaekitError
from saekit.json_files import parse_json
from saekit.names.site import Site
from saekit.steer.weights.delta import tensors_sha256
from saekit.tensor_files import SUFFIX, read_tensors, write_tensors

FORMAT, VERSION = "saekit-stitch", 1
_HINT = "Choose a file that `saekit stitch` wrote."
_MAX_BYTES = 1 << 34


@dataclass(frozen=True, eq=False)
class Affine:
    """x -> weight x + bias.

    Attributes:
        weight: (out, in) float32.
        bias: (out,) float32.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """The image (..., out) of x (..., in), in the dtype and on the device of x."""
        return x @ self.weight.to(x).T + self.bias.to(x)


@dataclass(frozen=True, eq=False)
class Stitch:
    """Affine maps between a site of a source model and a site of a target model.

    Attributes:
        up: from the source (d_a) to the target (d_b).
        down: back.
        source, target: the sites.
        facts: JSON values: `source` and `target`, each with `model` and `fingerprint`; `tokens`, `ridge`, `date`, `site_norm`
            (median length of the activations at the target).
    """

    up: Affine
    down: Affine
    source: Site
    target: Site
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        b, a = self.up.weight.shape
        shapes = [each.shape for each in (self.down.weight, self.up.bias, self.down.bias)]
        if shapes != [(a, b), (b,), (a,)]:
            raise InterventionError(f"The maps of a stitch do not fit each other: ({b}, {a}) and {tuple(shapes[0])}.")
        if not all(bool(each.isfinite().all()) for each in self._tensors().values()):
            raise InterventionError("A map of the stitch has numbers that are not finite.", "Fit it on more texts.")

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all.

        Raises:
            InterventionError: the name does not end in .safetensors.
            StorageFull: there is no room for the file.
        """
        path = Path(path)
        if path.suffix != SUFFIX:
            raise InterventionError(f"The file {path} cannot hold a stitch.", f"Give a name that ends in {SUFFIX}.")
        head = {"format": FORMAT, "version": VERSION, "source": str(self.source), "target": str(self.target)}
        content = json.dumps({**head, "facts": dict(self.facts), "sha256": tensors_sha256(self._tensors())}, allow_nan=False)
        parse_json(content, where=f"The stitch for {path}", error=InterventionError)
        write_tensors(path, self._tensors(), content)

    @classmethod
    def load(cls, path: str | Path) -> Stitch:
        """Read what :meth:`save` wrote.

        Raises:
            InterventionError: there is no such file, it holds no stitch, or it was changed after it was written.
        """
        head, tensors = read_tensors(Path(path), "a stitch", error=InterventionError, hint=_HINT, max_bytes=_MAX_BYTES)
        names = {"up.weight", "up.bias", "down.weight", "down.bias"}
        if head.get("format") != FORMAT or set(tensors) != names or not isinstance(head.get("facts"), Mapping):
            raise InterventionError(f"{path} does not hold a stitch.", _HINT)
        if head.get("version") != VERSION:
            what = f"{path} has version {head.get('version')!r:.20}; this saekit reads {VERSION}."
            raise InterventionError(what, "Update saekit.")
        if head.get("sha256") != tensors_sha256(tensors) or any(each.dtype != torch.float32 for each in tensors.values()):
            raise InterventionError(f"{path} was changed after it was written: its checksum differs.", "Fit the stitch again.")
        try:
            up, down = (Affine(tensors[f"{way}.weight"], tensors[f"{way}.bias"]) for way in ("up", "down"))
            return cls(up, down, Site.parse(head["source"]), Site.parse(head["target"]), head["facts"])
        except (SaekitError, TypeError, KeyError, ValueError) as error:
            raise InterventionError(f"{path} does not hold a stitch: {error}", _HINT) from error

    def _tensors(self) -> dict[str, Tensor]:
        pairs = {"up": self.up, "down": self.down}
        parts = {f"{way}.{name}": getattr(each, name) for way, each in pairs.items() for name in ("weight", "bias")}
        return {name: each.float().cpu().contiguous() for name, each in sorted(parts.items())}
