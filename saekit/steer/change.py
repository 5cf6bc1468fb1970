"""One change to one unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import InterventionError
from saekit.names.site import Site
from saekit.objects import Ref, Space
from saekit.steer.strength import FeatureStats, NormSource, StatsSource, Strength, look_up
from saekit.steer.target import Target, Vector

if TYPE_CHECKING:
    from saekit.lm import Positions

# The order in which changes to one space are made, whatever order they were given in; clamp and patch both set a value.
ORDER = {"ablate": 0, "clamp": 1, "patch": 1, "scale": 2, "add": 3}


@dataclass(frozen=True, eq=False)
class Change:
    """A unit and what happens to its coefficient a; :mod:`saekit.steer.amplitude` makes them."""

    op: str
    """ablate and clamp (a := c), patch (a := c[t] at position t), scale (a := c a), add (a := a + c)."""
    target: Target
    strength: Strength
    positions: Positions | None = None
    """Which tokens; None leaves it to `run` or `generate`."""
    along: Tensor | None = None
    """What one unit of strength is for a head, whose coefficient is a vector: (d_head,)."""
    amounts: Tensor | None = None
    """c, float64: (1 or prompts, *unit_shape), or of a patch (positions, *unit_shape). None until :meth:`resolved`."""

    def __post_init__(self) -> None:
        if self.op not in ORDER:
            raise InterventionError(f"There is no operation {self.op!r}.", f"Operations: {', '.join(ORDER)}.")
        if self.op == "scale" and self.strength.unit != "raw":
            raise InterventionError(f"A scale by {self.strength} is no factor.", "Give a plain number: 0 ablates, 2 doubles.")
        if self.positions is not None and not isinstance(self.positions, str):
            object.__setattr__(self, "positions", tuple(map(int, self.positions)))
        for name in ("along", "amounts"):
            if (tensor := getattr(self, name)) is not None:
                object.__setattr__(self, name, tensor.detach().cpu().double())

    @property
    def site(self) -> Site:
        """Where the unit is read.

        Raises:
            InterventionError: it is part of a weight matrix.
        """
        if self.target.site is None:
            raise InterventionError(f"{self.target} is no activation, so it cannot be changed by {self.op}.")
        return self.target.site

    @property
    def needs(self) -> str | None:
        """The measure that turns the strength into a coefficient: "norm", "stats", or None where none is needed."""
        if self.amounts is not None or self.strength.unit == "raw":
            return None
        return "norm" if self.strength.unit == "norm" else "stats"

    def resolved(self, space: Space, unit: int, stats: StatsSource | None = None, norms: NormSource | None = None) -> Change:
        """The same change with its amounts computed.

        Raises:
            InterventionError: a measure is missing or useless, or the strength does not fit the space.
        """
        if self.amounts is not None:
            return self
        if space.unit_shape and self.op != "scale":
            return replace(self, amounts=self._vectors(space, stats, norms))
        if self.along is not None:
            raise InterventionError(f"The coefficient of {self.target} is a number, not a vector.", "Leave out `along`.")
        return replace(self, amounts=self._numbers(space, unit, stats, norms))

    def _numbers(self, space: Space, unit: int, stats: StatsSource | None, norms: NormSource | None) -> Tensor:
        values, kind = torch.tensor(self.strength.values, dtype=torch.double), self.strength.unit
        if kind == "raw":
            return values
        if kind == "norm":
            # So long that what the unit writes is `values` times as long as a typical activation.
            norm = float(look_up(norms, space.site_out, "the median norm"))
            length = float(space.lengths([unit], norm))
            if not length > 0:
                raise InterventionError(f"{self.target} writes nothing: its direction is zero.", "Choose a live one.")
            return values * norm / length
        found: FeatureStats = look_up(stats, self.target, f"the {kind}")
        if kind == "quantile":
            return torch.tensor([found.quantile(q) for q in self.strength.values], dtype=torch.double)
        if kind == "mean":
            return values * float(found.mean)
        if found.max <= 0:
            raise InterventionError(f"{self.target} never fires, so {self.strength} is nothing.", "Use the unit norm or raw.")
        return values * found.max

    def _vectors(self, space: Space, stats: StatsSource | None, norms: NormSource | None) -> Tensor:
        values, kind = torch.tensor(self.strength.values, dtype=torch.double)[:, None], self.strength.unit
        if kind == "mean":
            return values * torch.as_tensor(look_up(stats, self.target, "the mean").mean)
        if self.op == "ablate":
            return values.new_zeros(1, *space.unit_shape)
        if self.along is None or tuple(self.along.shape) != space.unit_shape:
            raise InterventionError(
                f"The coefficient of {self.target} is a vector of {space.unit_shape[0]} numbers; a strength alone gives none.",
                "Give `along`, a vector of that length.",
            )
        if kind == "raw":
            return values * self.along
        if kind == "quantile":
            raise InterventionError(f"{self.target} has no quantiles.", "Use the unit norm, max or raw.")
        if not self.along.any():
            raise InterventionError(f"`along` of {self.target} is zero: it has no direction.", "Give one with a length.")
        if kind == "norm":
            length = float(look_up(norms, space.site_out, "the median norm"))
        else:
            length = look_up(stats, self.target, "the max").max
        return values * length * self.along / self.along.norm()

    def to_dict(self, name: str, tensors: dict[str, Tensor] | None) -> dict[str, Any]:
        """JSON values; vectors go to `tensors` under names that begin with `name`, where it is given."""

        def pack(tensor: Tensor, part: str) -> Any:
            if tensors is None or tensor.numel() == 1:
                return tensor.tolist()
            tensors[f"{name}.{part}"] = tensor.clone()  # two changes may share one vector, which safetensors refuses
            return {"tensor": f"{name}.{part}"}

        target, value, positions = self.target, self.strength.value, self.positions
        data: dict[str, Any] = {
            "op": self.op,
            "target": str(target)
            if isinstance(target, Ref)
            else {"site": str(target.site), "values": pack(target.values, "target")},
            "strength": list(value) if isinstance(value, tuple) else value,
            "unit": self.strength.unit,
            "positions": positions if positions is None or isinstance(positions, str) else list(positions),
        }
        if self.along is not None:
            data["along"] = pack(self.along, "along")
        if self.amounts is not None:
            data["amounts"] = pack(self.amounts, "amounts")
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Change:
        """The change that :meth:`to_dict` was called on."""

        def unpack(value: Any, dtype: torch.dtype) -> Tensor:
            return tensors[value["tensor"]] if isinstance(value, Mapping) else torch.tensor(value, dtype=dtype)

        target, value = data["target"], data["strength"]
        return cls(
            data["op"],
            Ref.parse(target)
            if isinstance(target, str)
            else Vector(Site.parse(target["site"]), unpack(target["values"], torch.float32)),
            Strength(tuple(value) if isinstance(value, list) else value, data["unit"]),
            data["positions"],
            unpack(data["along"], torch.double) if "along" in data else None,
            unpack(data["amounts"], torch.double) if "amounts" in data else None,
        )
