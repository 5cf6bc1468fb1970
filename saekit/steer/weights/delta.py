"""An additive change of a model's weights, dense or as a product of thin matrices."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from saekit.errors import InterventionError, StoreMismatch
from saekit.lm.edited import check_edit
from saekit.lm.fingerprint import differs

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

Factors = tuple[Tensor, Tensor]
_NOTHING: Mapping[str, Any] = MappingProxyType({})


def edit_facts(lm: LanguageModel, method: str, **facts: Any) -> dict[str, Any]:
    """Facts of an edit made now on `lm`: its name, fingerprint, the method, the date, and `facts`, which are JSON values."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"method": method, "model": lm.name, "fingerprint": lm.fingerprint(), "date": date, **facts}


@dataclass(frozen=True, eq=False)
class WeightDelta:
    """What is added to parameters of a model. `a + b`, `a - b` and `.5 * a` are deltas too.

    Attributes:
        tensors: dense changes by the name that the parameter has in `lm.model.named_parameters()`, in the parameter's shape.
        facts: JSON values. :func:`edit_facts` gives `method`, `model`, `fingerprint` (of the model without this edit), `date`.
        factors: changes left @ right as (left (rows, r), right (r, columns)), by name; rows and columns as the parameter stores
            them. A name may have both a dense change and factors.

    Raises:
        InterventionError: a tensor is not of finite floating-point numbers, or factors do not fit each other.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    factors: Mapping[str, Factors] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tensors = {name: _checked(name, each) for name, each in self.tensors.items()}
        factors = {name: (_checked(name, left), _checked(name, right)) for name, (left, right) in self.factors.items()}
        for name, (left, right) in factors.items():
            shapes = left.shape, right.shape
            if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
                raise InterventionError(f"The factors of {name} have shapes {tuple(shapes[0])} and {tuple(shapes[1])}.")
            if name in tensors and tensors[name].shape != (left.shape[0], right.shape[1]):
                raise InterventionError(f"The dense change of {name} and its factors have different shapes.")
        object.__setattr__(self, "tensors", MappingProxyType(tensors))
        object.__setattr__(self, "factors", MappingProxyType(factors))

    @classmethod
    def between(
        cls, before: LanguageModel | Mapping[str, Tensor], after: LanguageModel | Mapping[str, Tensor], **facts: Any
    ) -> WeightDelta:
        """after - before, of the parameters that differ, in float32 (float64 for float64 weights).

        `before` with the delta equals `after` up to the rounding of the difference: exactly for most half-precision weights, and
        to about one unit in the last place for float32.

        Args:
            before, after: models, or parameters by name.
            facts: further facts; `method` is "difference" where none is given. The model and its fingerprint are those of
                `before` where it is a model.

        Raises:
            InterventionError: their parameters have other names or shapes.
        """
        own = {} if isinstance(before, Mapping) else edit_facts(before, "difference")
        first, second = _parameters(before), _parameters(after)
        if odd := sorted(first.keys() ^ second.keys()):
            raise InterventionError(f"Only one of the two models has a parameter {odd[0]}.", "Give models of one architecture.")
        changed = {}
        for name, old in first.items():
            new = second[name].to(old.device)
            if old.shape != new.shape:
                raise InterventionError(
                    f"{name} has shapes {tuple(old.shape)} and {tuple(new.shape)}.", "Give models of one architecture."
                )
            if not torch.equal(old, new.to(old.dtype)) or old.dtype != new.dtype:
                kind = torch.promote_types(torch.promote_types(old.dtype, new.dtype), torch.float32)
                difference = new.to(kind) - old.to(kind)
                if bool((difference != 0).any()):
                    changed[name] = difference.cpu()
        return cls(changed, {"method": "difference", **own, **facts})

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that change, sorted."""
        return tuple(sorted({*self.tensors, *self.factors}))

    @cached_property
    def digest(self) -> str:
        """sha256 of the changes; facts do not count."""
        return tensors_sha256(self.parts())

    def parts(self) -> dict[str, Tensor]:
        """All tensors by name: `dense:NAME`, `left:NAME` and `right:NAME`."""
        found = {f"dense:{name}": each for name, each in self.tensors.items()}
        for name, (left, right) in self.factors.items():
            found |= {f"left:{name}": left, f"right:{name}": right}
        return dict(sorted(found.items()))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter's change."""
        if name in self.tensors:
            return tuple(self.tensors[name].shape)
        left, right = self.factors[name]
        return left.shape[0], right.shape[1]

    def change(self, name: str, like: Tensor | None = None) -> Tensor:
        """The whole change of a parameter.

        Args:
            name: of the parameter.
            like: gives the device and, at least in float32, the dtype; None: float32 on the CPU.
        """
        kind = torch.float32 if like is None else torch.promote_types(like.dtype, torch.float32)
        place: dict[str, Any] = {"device": torch.device("cpu") if like is None else like.device, "dtype": kind}
        parts = [self.tensors[name].to(**place)] if name in self.tensors else []
        if name in self.factors:
            left, right = self.factors[name]
            parts.append(left.to(**place) @ right.to(**place))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def norm(self, name: str) -> float:
        """Frobenius norm of a parameter's change; that of factors is computed without the product."""
        if name not in self.factors or name in self.tensors:
            return float(self.change(name).norm())
        left, right = (each.double() for each in self.factors[name])
        return float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0).sqrt())

    def rank(self, name: str) -> int | None:
        """Columns of the left factor; None where the change has a dense part."""
        return None if name in self.tensors else self.factors[name][0].shape[1]

    def check(self, lm: LanguageModel) -> None:
        """Refuse another model than the one of the facts, and parameters that `lm` lacks or has in another shape.

        Raises:
            StoreMismatch: the delta was made for another model.
            InterventionError: it does not fit the parameters, or they cannot be edited.
        """
        check_edit(lm, self)

    def with_facts(self, **facts: Any) -> WeightDelta:
        """The same change with further facts."""
        return replace(self, facts={**self.facts, **facts})

    # Algebra

    def __mul__(self, factor: float) -> WeightDelta:
        if not isinstance(factor, int | float):
            return NotImplemented
        tensors = {name: each * factor for name, each in self.tensors.items()}
        factors = {name: (left * factor, right) for name, (left, right) in self.factors.items()}
        return WeightDelta(tensors, self._made({"op": "scale", "factor": factor, "of": self._source}), factors)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> WeightDelta:
        return self * (1 / divisor)

    def __neg__(self) -> WeightDelta:
        return self * -1

    def __add__(self, other: WeightDelta) -> WeightDelta:
        if not isinstance(other, WeightDelta):
            return NotImplemented
        self._compatible(other)
        tensors = {**self.tensors}
        for name, each in other.tensors.items():
            tensors[name] = tensors[name] + each if name in tensors else each
        factors = {**self.factors}
        for name, (left, right) in other.factors.items():
            if name in factors:
                left, right = torch.cat([factors[name][0], left], 1), torch.cat([factors[name][1], right], 0)
            factors[name] = left, right
        for name, (left, right) in list(factors.items()):
            if left.numel() + right.numel() >= left.shape[0] * right.shape[1]:  # a dense tensor is smaller
                del factors[name]
                tensors[name] = tensors[name] + left @ right if name in tensors else left @ right
        return WeightDelta(tensors, self._made({"op": "add", "of": [self._source, other._source]}), factors)

    def __sub__(self, other: WeightDelta) -> WeightDelta:
        return self + -other if isinstance(other, WeightDelta) else NotImplemented

    @property
    def _source(self) -> Any:
        return self.facts.get("made") or self.facts.get("name") or self.facts.get("method", "delta")

    def _made(self, made: Any) -> dict[str, Any]:
        kept = {key: self.facts[key] for key in ("model", "fingerprint") if key in self.facts}
        return {**kept, "method": "combined", "made": made}

    def _compatible(self, other: WeightDelta) -> None:
        mine, theirs = self.facts.get("fingerprint"), other.facts.get("fingerprint")
        if mine and theirs and (what := differs(mine, theirs)):
            raise StoreMismatch(f"The deltas are of two models: their {what} differs.", "Make both on one model.")
        for name in set(self.names) & set(other.names):
            if self.shape(name) != other.shape(name):
                raise InterventionError(f"The deltas have shapes {self.shape(name)} and {other.shape(name)} for {name}.")

    # Files

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all: see :func:`saekit.steer.weights.files.save_delta`."""
        from saekit.steer.weights.files import save_delta

        save_delta(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, lm: LanguageModel | None = None) -> WeightDelta:
        """Read what :meth:`save` wrote, and :meth:`check` it where `lm` is given.

        Raises:
            InterventionError: there is no such file, it holds no delta, or it was changed after it was written.
            StoreMismatch: the delta was made for another model.
        """
        from saekit.steer.weights.files import load_delta

        found = load_delta(Path(path))
        if lm is not None:
            found.check(lm)
        return found


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def checksum(tensors: Mapping[str, Tensor], head: Mapping[str, Any]) -> str:
    """sha256 of a file's tensors and of the JSON values in its header."""
    text = json.dumps(head, sort_keys=True, allow_nan=False)
    return hashlib.sha256((text + tensors_sha256(tensors)).encode()).hexdigest()


def _checked(name: str, tensor: Tensor) -> Tensor:
    """On the CPU, detached."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        raise InterventionError(f"The change of {name} is not a tensor of floating-point numbers.")
    tensor = tensor.detach().cpu()
    if not bool(torch.isfinite(tensor).all()):
        raise InterventionError(f"The change of {name} is infinite or NaN.", "Make the edit smaller.")
    return tensor


def _parameters(model: LanguageModel | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(model, Mapping):
        return {name: each.detach() for name, each in model.items()}
    module: nn.Module = model.model
    return {name: each.detach() for name, each in module.named_parameters()}
