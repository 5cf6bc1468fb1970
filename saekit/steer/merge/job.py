"""What a method of merging is given and returns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekit.errors import ConfigError, MergeError
from saekit.progress import Bar
from saekit.steer.merge.checkpoint import Checkpoint

_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
Texts = Sequence[str] | Sequence[Sequence[int]]


@dataclass(frozen=True, eq=False)
class Piece:
    """One tensor of all models.

    Attributes:
        name: of the tensor.
        layer: the layer that it is in; None for embeddings, the last norm and the head.
        base: weights of the base model, float32 (float64 where a model is stored in float64).
        deltas: the task vectors W - W_base of the models, of the shape and dtype of `base`.
    """

    name: str
    layer: int | None
    base: Tensor
    deltas: tuple[Tensor, ...]


class Step(NamedTuple):
    """What a method makes of a piece.

    Attributes:
        change: what is added to the base.
        used: the weighted task vectors that remain after entries were trimmed or dropped, for the report.
    """

    change: Tensor
    used: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Job:
    """Models to merge.

    Attributes:
        base: the model that the others were fine-tuned from.
        models: M of them.
        weights: factor of the task vector of each model.
        options: settings of the method.
        texts: texts (or rows of token ids) of each model, or one set for all.
        found: facts that the method adds to the report.
        bar: shows progress in tensors read.
        passes: tensors that were read.
    """

    base: Checkpoint
    models: tuple[Checkpoint, ...]
    weights: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    texts: tuple[Texts, ...] = ()
    found: dict[str, Any] = field(default_factory=dict)
    bar: Bar = field(default_factory=Bar)
    passes: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The floating-point tensors."""
        return [name for name, facts in self.base.tensors.items() if facts.dtype.is_floating_point]

    @property
    def layers(self) -> list[int | None]:
        """The layers of these tensors, None first where a tensor is in no layer."""
        return sorted({layer_of(name) for name in self.names}, key=lambda layer: -1 if layer is None else layer)

    def piece(self, name: str) -> Piece:
        """Read one tensor of every model.

        Raises:
            MergeError: a weight is not finite.
            ModelNotFound: a file cannot be read.
        """
        kinds = [each.tensors[name].dtype for each in (self.base, *self.models)]
        exact = torch.float64 if torch.float64 in kinds else torch.float32
        own = self.base.read(name)
        base = _checked(own.to(exact), name, self.base)
        deltas = []
        for model in self.models:
            theirs = model.read(name)
            start = own.to(theirs.dtype).to(exact)
            deltas.append(_checked(theirs.to(exact), name, model) - start)
        self.passes.append(name)
        self.bar.update(len(self.passes), name)
        return Piece(name, layer_of(name), base, tuple(deltas))

    def pieces(self) -> Iterator[Piece]:
        """All floating-point tensors, one after the other."""
        return map(self.piece, self.names)

    def option(self, name: str, default: float, *, low: float, high: float) -> float:
        """A setting of the method.

        Raises:
            ConfigError: it is no number from `low` to `high`.
        """
        value = self.options.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not (isfinite(value) and low <= value <= high):
            raise ConfigError(f"The option {name}={value!r:.40} cannot be used.", f"Give a number from {low:g} to {high:g}.")
        return value

    @property
    def scale(self) -> float:
        """Factor of the merged task vector; 1 by default."""
        return self.option("scale", 1.0, low=-100, high=100)

    def weighted(self, deltas: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The task vectors times the weights of their models."""
        return tuple(delta * weight for delta, weight in zip(deltas, self.weights, strict=True))


def by_layer(job: Job, coefficients: Mapping[int | None, Sequence[float]]) -> Callable[[Piece], Step]:
    """The sum of the weighted task vectors with a coefficient for each layer and model."""
    scale = job.scale

    def merge(piece: Piece) -> Step:
        used = job.weighted(piece.deltas)
        shares = coefficients[piece.layer]
        return Step(scale * total([share * each for share, each in zip(shares, used, strict=True)]), used)

    return merge


def total(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of tensors of one shape."""
    first, *others = tensors
    for each in others:
        first = first + each
    return first


def layer_of(tensor: str) -> int | None:
    """The layer that the name of a tensor says: its first number."""
    match = _LAYER.search(tensor)
    return int(match[1]) if match else None


def _checked(weights: Tensor, name: str, model: Checkpoint) -> Tensor:
    if not weights.isfinite().all():
        raise MergeError(f"{name} of {model.name} has a weight that is NaN or infinite.", "Use another checkpoint.")
    return weights
