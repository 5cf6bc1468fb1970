"""What was merged, in numbers: lengths of task vectors, entries trimmed, conflicts of sign, by layer and over all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

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


class _Sums:
    """Sums over the tensors of a layer, for M models.

    Plain numbers: small tensors that stay between large ones that go would keep the allocator from returning memory.
    """

    def __init__(self, models: int) -> None:
        self.products = [[0.0] * models for _ in range(models)]
        """Products of task vectors."""
        self.before, self.after = [0] * models, [0] * models
        """Entries of each task vector that are not zero, before and after entries were dropped."""
        self.merged = 0.0
        """Square of the length of the change."""
        self.both = self.some = 0
        """Entries in which both signs, or any, remain."""

    def add(self, other: _Sums) -> None:
        """Add the sums of other tensors."""
        self.products = [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(self.products, other.products, strict=True)]
        self.before = [a + b for a, b in zip(self.before, other.before, strict=True)]
        self.after = [a + b for a, b in zip(self.after, other.after, strict=True)]
        self.merged, self.both, self.some = self.merged + other.merged, self.both + other.both, self.some + other.some

    @property
    def norms(self) -> list[float]:
        """Lengths of the task vectors."""
        return [self.products[i][i] ** 0.5 for i in range(len(self.products))]

    @property
    def facts(self) -> dict[str, Any]:
        """What the report says of them."""
        trimmed = [_share(before - after, before) for before, after in zip(self.before, self.after, strict=True)]
        conflicts = _share(self.both, self.some)
        return {"norms": self.norms, "norm": self.merged**0.5, "trimmed": trimmed, "conflicts": conflicts}


class Tally:
    """Adds up a report, tensor by tensor."""

    def __init__(self, models: int) -> None:
        self.parameters = 0
        self._layers: dict[int | None, _Sums] = defaultdict(lambda: _Sums(models))
        self._models = models

    def add(self, piece: Piece, step: Step) -> None:
        """Count a tensor."""
        self.parameters += piece.base.numel()
        own = _Sums(self._models)
        for i, one in enumerate(piece.deltas):
            for j, other in enumerate(piece.deltas):
                own.products[i][j] = own.products[j][i] if j < i else _product(one, other)
        own.merged = _product(step.change, step.change)
        own.before = [int(delta.count_nonzero()) for delta in piece.deltas]
        own.after = [int(used.count_nonzero()) for used in step.used]
        up, down = torch.zeros_like(piece.base, dtype=torch.bool), torch.zeros_like(piece.base, dtype=torch.bool)
        for used in step.used:
            up |= used > 0
            down |= used < 0
        own.both, own.some = int((up & down).count_nonzero()), int((up | down).count_nonzero())
        self._layers[piece.layer].add(own)

    def report(self, method: str, job: Job, remarks: Sequence[str]) -> MergeReport:
        """The report of what was added."""
        whole = _Sums(self._models)
        for sums in self._layers.values():
            whole.add(sums)
        facts = whole.facts
        rows = zip(job.models, job.weights, facts["norms"], facts["trimmed"], strict=True)
        return MergeReport(
            method=method,
            base=job.base.name,
            models=tuple({"model": m.name, "weight": weight, "norm": norm, "trimmed": t} for m, weight, norm, t in rows),
            options=dict(job.options),
            parameters=self.parameters,
            norm=facts["norm"],
            cosines=_cosines(whole),
            conflicts=facts["conflicts"],
            layers=tuple({"layer": each, **self._layers[each].facts} for each in job.layers if each in self._layers),
            remarks=tuple(remarks),
            found=dict(job.found),
        )


def _product(one: Tensor, other: Tensor) -> float:
    """Sum of the products of entries, in float64 by rows of at most a million so that no copy in float64 is as large."""
    pairs = zip(one.flatten().split(2**20), other.flatten().split(2**20), strict=True)
    return sum(float(torch.dot(a.double(), b.double())) for a, b in pairs)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _cosines(sums: _Sums) -> tuple[tuple[float | None, ...], ...]:
    norms = sums.norms
    return tuple(
        tuple(each / (norms[i] * norms[j]) if norms[i] * norms[j] else None for j, each in enumerate(row))
        for i, row in enumerate(sums.products)
    )
