"""Masks: which weights of a model may change, from refs, rankings, or boolean tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from saekit.errors import ConfigError, UnknownRef, UnsupportedModel
from saekit.lm.layout.matrices import Matrix, matrices
from saekit.lm.layout.weight_parts import Part, head_parts, neuron_parts, vector_parts
from saekit.names.edge import Edge, parse_object
from saekit.names.ref import Ref
from saekit.names.site import Site
from saekit.tasks import Ranking

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

Objects = Ranking | Iterable[Ref | Edge | str] | Ref | str


@dataclass(frozen=True, eq=False)
class WeightMask:
    """A set of weights. `a | b` has the weights of both, `a & b` those in both, `a - b` those of `a` alone.

    Attributes:
        parts: by parameter name of the transformers model, a boolean tensor of the parameter's shape. Parameters without a weight
            in the set are left out.

    Memory: one byte for each weight of the parameters in `parts`.
    """

    parts: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", {name: mask for name, mask in self.parts.items() if bool(mask.any())})

    @cached_property
    def count(self) -> int:
        """Number of weights in the set."""
        return sum(int(mask.sum()) for mask in self.parts.values())

    def share(self, lm: LanguageModel) -> float:
        """The count relative to all parameters of a model."""
        return self.count / parameters(lm)

    def __or__(self, other: WeightMask) -> WeightMask:
        both = self.parts.keys() & other.parts.keys()
        return WeightMask({**self.parts, **other.parts, **{name: self.parts[name] | other.parts[name] for name in both}})

    def __and__(self, other: WeightMask) -> WeightMask:
        return WeightMask({name: mask & other.parts[name] for name, mask in self.parts.items() if name in other.parts})

    def __sub__(self, other: WeightMask) -> WeightMask:
        return WeightMask({name: mask & ~other.parts[name] if name in other.parts else mask for name, mask in self.parts.items()})

    @classmethod
    def everything(cls, lm: LanguageModel, *, blocks: bool = False) -> WeightMask:
        """All floating-point parameters of the model; with `blocks`, those of its blocks alone."""
        names = {id(weight): name for name, weight in lm.model.named_parameters()}
        owners = lm.blocks if blocks else [lm.model]
        found = {names[id(weight)]: weight for owner in owners for weight in owner.parameters() if weight.is_floating_point()}
        return cls({name: torch.ones_like(weight, dtype=torch.bool) for name, weight in found.items()})

    @classmethod
    def of(cls, lm: LanguageModel, objects: Objects, *, fraction: float | None = None) -> WeightMask:
        """The weights of objects.

        A neuron has its rows of the matrices that make it and its column of the down projection. A head has its rows of the
        projections to q, k and v and its columns of the output projection; q, k and v of a head are their rows alone. A row of a
        matrix has its bias, too. `site:resid_post.3` is block 3 as a whole, `site:attn_out.3` its attention, `site:mlp_out.3`
        its MLP. An edge has the weights of both ends, as far as these have any.

        Args:
            lm: the model.
            objects: refs, edges, their text, or a ranking.
            fraction: take the objects in the order given, those of a ranking by magnitude, as long as their weights are at most
                this share of all parameters; None takes all.

        Raises:
            ConfigError: there are no objects, or the first one has more weights than the fraction.
            UnknownRef: an object has no weights in the model, such as a feature of an SAE.
            UnsupportedModel: the weights are not floating-point numbers in memory.
        """
        if isinstance(objects, Ranking):
            names: list[Ref | Edge] = list(objects.top(len(objects)).refs)
        else:
            listed = [objects] if isinstance(objects, str | Ref) else list(objects)
            names = [parse_object(each) if isinstance(each, str) else each for each in listed]
        if fraction is not None and not 0 < fraction <= 1:
            raise ConfigError(f"A fraction of {fraction} of the parameters does not exist.", "Give a number above 0, at most 1.")
        builder = _Builder(lm)
        most = parameters(lm) if fraction is None else int(fraction * parameters(lm))
        for name in names:
            if not builder.add(name, most):
                break
        if not builder.count:
            why = f"{names[0]} has more weights than {fraction:.2%} of the model" if names else "no object is given"
            raise ConfigError(f"The mask is empty: {why}.", "Give objects, and a fraction that the first of them fits into.")
        return cls(builder.parts)


def parameters(lm: LanguageModel) -> int:
    """Number of all parameters of a model; tied ones count once."""
    return sum(weight.numel() for weight in lm.model.parameters())


def matrices_of(lm: LanguageModel) -> WeightMask:
    """All weight matrices of the blocks, without biases, norms and embeddings.

    Raises:
        UnsupportedModel: the blocks have none that are floating-point numbers in memory.
    """
    names = {id(weight): name for name, weight in lm.model.named_parameters()}
    found: dict[str, Tensor] = {}
    for each in matrices(lm):
        weight = each.module.weight
        assert isinstance(weight, Tensor)
        if id(weight) in names and weight.is_floating_point() and weight.device.type != "meta":
            found[names[id(weight)]] = torch.ones_like(weight, dtype=torch.bool)
    if not found:
        raise UnsupportedModel(f"The blocks of {lm.name} have no matrices that can be trained.", "Load it unquantised.")
    return WeightMask(found)


def trainable(lm: LanguageModel, mask: WeightMask) -> dict[str, nn.Parameter]:
    """The parameters that a mask names.

    Raises:
        ConfigError: the model has no such parameter, or it has another shape.
        UnsupportedModel: a parameter is quantised, or not in memory.
    """
    own = dict(lm.model.named_parameters())
    found = {}
    for name, part in mask.parts.items():
        weight = own.get(name)
        if weight is None or weight.shape != part.shape or part.dtype != torch.bool:
            shape = "there is none of that name" if weight is None else f"it has the shape {tuple(weight.shape)}"
            raise ConfigError(
                f"The mask {tuple(part.shape)} {part.dtype} does not fit the parameter {name} of {lm.name}: {shape}.",
                "Give boolean tensors by the names of model.named_parameters().",
            )
        if not weight.is_floating_point() or weight.device.type == "meta":
            what = "not in memory" if weight.device.type == "meta" else f"stored as {weight.dtype}"
            raise UnsupportedModel(f"{name} of {lm.name} is {what}, so it cannot be trained.", "Load the model without that.")
        found[name] = weight
    return found


class _Builder:
    """Collects the weights of objects."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm, self.parts, self.count = lm, dict[str, Tensor](), 0
        self._matrices = matrices(lm)
        self._of_module = {each.module: each for each in self._matrices}
        self._weights = {id(weight): (name, weight) for name, weight in lm.model.named_parameters()}

    def add(self, name: Ref | Edge, most: int) -> bool:
        """Add the weights of an object, unless there are then more than `most`. Whether they were added."""
        ends = [name] if isinstance(name, Ref) else [name.source, name.target]
        places = [place for end in ends for place in self._places(end)]
        if not places:
            raise UnknownRef(f"{name} has no weights in {self.lm.name}.", "Name neurons, heads, rows, matrices or layers.")
        chosen: list[tuple[str, Any]] = []
        for weight, rows, columns in places:
            parameter, tensor = self._weights[id(weight)]
            if parameter not in self.parts:
                self.parts[parameter] = torch.zeros_like(tensor, dtype=torch.bool)
            chosen.append((parameter, rows if isinstance(columns, slice) else (slice(None), columns)))
        if self.count + sum(int((~self.parts[parameter][index]).sum()) for parameter, index in chosen) > most:
            return False
        for parameter, index in chosen:
            self.count += int((~self.parts[parameter][index]).sum())  # parts of one object may overlap
            self.parts[parameter][index] = True
        return True

    def _places(self, ref: Ref) -> Iterator[tuple[Tensor, Tensor | slice, Tensor | slice]]:
        """(parameter, rows, columns) of an object, as the parameter is stored."""
        if ref.kind == "site" and ref.site is not None and ref.site.kind == "resid_post":
            every = self.lm.blocks[self.lm.site(ref.site).layer or 0].parameters()
            yield from ((each, slice(None), slice(None)) for each in every)
            return
        for matrix, rows, columns in self._of(ref):
            weight, bias = matrix.module.weight, getattr(matrix.module, "bias", None)
            assert isinstance(weight, Tensor)
            yield (weight, columns, rows) if matrix.transposed else (weight, rows, columns)
            if isinstance(bias, Tensor) and isinstance(columns, slice):
                yield bias, rows, slice(None)

    def _of(self, ref: Ref) -> Iterator[Part]:
        lm, layer = self.lm, ref.layer or 0
        if ref.kind == "neuron":
            self._check(ref, lm.width(lm.site(Site("neurons", layer))))
            yield from neuron_parts(lm, layer, ref.unit, self._of_module)
        elif ref.kind in ("head", "pattern", "q", "k", "v"):
            place = lm.site(Site("heads" if ref.kind in ("head", "pattern") else ref.kind, layer))
            self._check(ref, lm.token_shape(place)[0])
            if ref.kind == "head":
                yield from head_parts(lm, layer, ref.unit, self._of_module)
            else:
                for kind in ("q", "k") if ref.kind == "pattern" else (ref.kind,):
                    site = Site(kind, layer)
                    own = ref.unit * lm.token_shape(site)[0] // lm.size("n_heads", layer) if ref.kind == "pattern" else ref.unit
                    yield from vector_parts(lm, site, own, self._of_module)
        elif ref.kind in ("weight", "matrix"):
            yield self._row(ref)
        elif ref.kind == "site" and ref.site is not None and ref.site.kind in ("mlp_in", "mlp_out"):
            yield from neuron_parts(lm, lm.site(ref.site).layer or 0, None, self._of_module)
        elif ref.kind == "site" and ref.site is not None and ref.site.kind == "attn_out":
            attention = lm.attention(lm.site(ref.site))
            yield from (Part(each) for module in attention.modules() if (each := self._of_module.get(module)) is not None)

    def _row(self, ref: Ref) -> Part:
        found: list[Matrix] = [each for each in self._matrices if (each.layer, each.name) == (ref.layer, ref.matrix)]
        if not found:
            own = ", ".join(each.name for each in self._matrices if each.layer == ref.layer)
            raise UnknownRef(f"{self.lm.name} has no {ref}.", f"Layer {ref.layer} has {own}." if own else None)
        if ref.kind == "matrix":
            return Part(found[0])
        self._check(ref, len(found[0].weight_OI))
        return Part(found[0], rows=torch.tensor([ref.unit]))

    def _check(self, ref: Ref, size: int) -> None:
        if ref.unit >= size:
            raise UnknownRef(f"{self.lm.name} has no {ref}.", f"Numbers there are 0 to {size - 1}.")
