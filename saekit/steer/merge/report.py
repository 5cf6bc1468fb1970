"""What was merged, in numbers: lengths of task vectors, entries trimmed, conflicts of sign, by layer and over all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from saekit.steer.merge.job import Job, Piece, Step


@dataclass(frozen=True)
class MergeReport:
    """A merge.

    Attributes:
        method: a row of :data:`saekit.steer.merge.registry.MERGES`.
        base: name of the base model.
        models: for each model its name, weight, `norm` (length of its task vector), `trimmed` (share of the entries of its task
            vector that the method dropped, among those that are not zero).
        options: settings of the method.
        parameters: numbers in all tensors that were merged.
        norm: length of the merged task vector.
        cosines: (M, M) cosines between the task vectors; None where a vector is zero.
        conflicts: share of entries in which task vectors with both signs remain, among entries in which any remains.
        layers: the same by layer (None: embeddings, last norm and head): layer, norms of the models, norm, trimmed, conflicts.
        remarks: sentences about number formats and tokenizers.
        found: facts of the method, such as thresholds or sensitivities.
    """

    method: str
    base: str
    models: tuple[Mapping[str, Any], ...]
    options: Mapping[str, Any]
    parameters: int
    norm: float
    cosines: tuple[tuple[float | None, ...], ...]
    conflicts: float
    layers: tuple[Mapping[str, Any], ...]
    remarks: tuple[str, ...] = ()
    found: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            **{name: getattr(self, name) for name in ("method", "base", "parameters", "norm", "conflicts")},
            "models": [dict(each) for each in self.models],
            "options": dict(self.options),
            "cosines": [list(row) for row in self.cosines],
            "layers": [dict(each) for each in self.layers],
            "remarks": list(self.remarks),
            "found": dict(self.found),
        }


@dataclass
class _Sums:
    """Sums over the tensors of a layer, for M models."""

    products: torch.Tensor
    """(M, M) products of task vectors."""
    before: torch.Tensor
    """(M,) entries that are not zero."""
    after: torch.Tensor
    """(M,) the same after entries were dropped."""
    merged: float = 0.0
    """Square of the length of the change."""
    both: int = 0
    some: int = 0


class Tally:
    """Adds up a report, tensor by tensor."""

    def __init__(self, models: int) -> None:
        self.parameters = 0
        self._layers: dict[int | None, _Sums] = defaultdict(lambda: _empty(models))

    def add(self, piece: Piece, step: Step) -> None:
        """Count a tensor."""
        self.parameters += piece.base.numel()
        sums = self._layers[piece.layer]
        flat = [delta.flatten() for delta in piece.deltas]
        for i, one in enumerate(flat):
            for j, other in enumerate(flat[: i + 1]):
                sums.products[i, j] = sums.products[j, i] = sums.products[i, j] + float(torch.dot(one, other))
        sums.merged += float(step.change.double().square().sum())
        sums.before += torch.tensor([int(delta.count_nonzero()) for delta in piece.deltas])
        sums.after += torch.tensor([int(used.count_nonzero()) for used in step.used])
        up = torch.stack([used > 0 for used in step.used]).any(0)
        down = torch.stack([used < 0 for used in step.used]).any(0)
        sums.both += int((up & down).sum())
        sums.some += int((up | down).sum())

    def report(self, method: str, job: Job, remarks: Sequence[str]) -> MergeReport:
        """The report of what was added."""
        whole = _empty(len(job.models))
        for sums in self._layers.values():
            whole.products += sums.products
            whole.merged += sums.merged
            whole.before += sums.before
            whole.after += sums.after
            whole.both, whole.some = whole.both + sums.both, whole.some + sums.some
        norms, trimmed = _norms(whole), _trimmed(whole)
        pairs = list(zip(job.models, job.weights, norms, trimmed, strict=True))
        return MergeReport(
            method=method,
            base=job.base.name,
            models=tuple({"model": m.name, "weight": w, "norm": norm, "trimmed": share} for m, w, norm, share in pairs),
            options=dict(job.options),
            parameters=self.parameters,
            norm=whole.merged**0.5,
            cosines=_cosines(whole.products, norms),
            conflicts=_share(whole.both, whole.some),
            layers=tuple(_layer(layer, self._layers[layer]) for layer in job.layers if layer in self._layers),
            remarks=tuple(remarks),
            found=dict(job.found),
        )


def _empty(models: int) -> _Sums:
    products = torch.zeros(models, models, dtype=torch.float64)
    return _Sums(products, torch.zeros(models, dtype=torch.int64), torch.zeros(models, dtype=torch.int64))


def _layer(layer: int | None, sums: _Sums) -> dict[str, Any]:
    return {
        "layer": layer,
        "norms": _norms(sums),
        "norm": sums.merged**0.5,
        "trimmed": _trimmed(sums),
        "conflicts": _share(sums.both, sums.some),
    }


def _norms(sums: _Sums) -> list[float]:
    return [float(each) for each in sums.products.diagonal().sqrt()]


def _trimmed(sums: _Sums) -> list[float]:
    return [
        _share(int(before - after), int(before)) for before, after in zip(sums.before.tolist(), sums.after.tolist(), strict=True)
    ]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _cosines(products: torch.Tensor, norms: Sequence[float]) -> tuple[tuple[float | None, ...], ...]:
    n = len(norms)
    return tuple(
        tuple(float(products[i, j]) / (norms[i] * norms[j]) if norms[i] * norms[j] else None for j in range(n)) for i in range(n)
    )
