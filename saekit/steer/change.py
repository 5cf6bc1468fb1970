"""Changes: an operation on the coefficient of one unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from saekit.errors import InterventionError
from saekit.names.positions import DefaultPositions, Positions, TokenPositions
from saekit.names.site import Site
from saekit.objects import Ref, Space
from saekit.steer.condition import Condition
from saekit.steer.operations import OPERATIONS
from saekit.steer.reading import keyed, numbers, text
from saekit.steer.schedule import Schedule
from saekit.steer.strength import FeatureStats, NormSource, StatsSource, Strength, look_up
from saekit.steer.target import Target, Vector

_REQUIRED = {"op", "target", "strength", "unit", "positions"}
_OPTIONAL = {"along", "amounts"}
_SECOND = {"when", "decay"}
"""What a change may have since the second version of the format."""


@dataclass(frozen=True, eq=False)
class Change:
    """A unit and an operation on its coefficient; :mod:`saekit.steer.amplitude` makes them.

    Raises:
        ConfigError: the operation or the positions do not exist.
        InterventionError: the strength does not fit the operation, or a vector has values that are not finite.
    """

    op: str
    """One of :data:`saekit.steer.operations.OPERATIONS`."""
    target: Target
    strength: Strength
    positions: Positions | None = None
    """Which tokens, kept as text or as a tuple of places. None leaves it to the operation's default and to the caller of `run` or
    `generate`."""
    along: Tensor | None = None
    """The vector that a strength of 1 stands for where the coefficient is a vector, as that of a head: (d_head,)."""
    amounts: Tensor | None = None
    """Amounts of the operation, float64: (1 or prompts, *unit_shape), or of a patch (positions, *unit_shape), or of a resample
    (values to draw from, *unit_shape). None until :meth:`resolved`."""
    when: tuple[Condition, ...] = ()
    """The conditions that must hold at a token, all of them."""
    decay: Schedule | None = None
    """Factor of the effect by token."""

    def __post_init__(self) -> None:
        operation = OPERATIONS.find(self.op)
        if operation.factor and self.strength.unit != "raw":
            raise InterventionError(
                f"{self.op} by {self.strength} is not possible: its amount is a factor without unit.",
                "Give a plain number: 0 ablates, 2 doubles.",
            )
        if operation.by_position and self.amounts is None:
            raise InterventionError(f"{self.op} of {self.target} lacks its amounts.", "Make it with saekit.steer.patch.")
        seed = self.strength.values[0]
        if operation.drawn and (self.strength.unit != "raw" or len(self.strength.values) > 1 or seed < 0 or seed % 1):
            raise InterventionError(
                f"{self.op} by {self.strength} is not possible: its strength is the seed of a draw.", "Give an integer from 0."
            )
        object.__setattr__(self, "positions", None if self.positions is None else TokenPositions.parse(self.positions))
        object.__setattr__(self, "when", tuple(map(Condition.of, self.when)))
        object.__setattr__(self, "decay", None if self.decay is None else Schedule.parse(self.decay))
        for name in ("along", "amounts"):
            if (tensor := getattr(self, name)) is not None:
                tensor = tensor.detach().cpu().double()
                if not tensor.float().isfinite().all() or not tensor.ndim:
                    raise InterventionError(f"`{name}` of {self.target} has values that are not finite float32 numbers.")
                object.__setattr__(self, name, tensor)

    @property
    def choice(self) -> TokenPositions | DefaultPositions | None:
        """The positions, or else the default that the operation has."""
        policy = OPERATIONS[self.op].positions
        if self.positions is None and policy is not None:
            return DefaultPositions(policy)
        return cast("TokenPositions | None", self.positions)

    @property
    def site(self) -> Site:
        """The site where the unit is read.

        Raises:
            InterventionError: the unit is part of a weight matrix.
        """
        if self.target.site is None:
            raise InterventionError(f"{self.target} is no activation, so it cannot be changed by {self.op}.")
        return self.target.site

    @property
    def targets(self) -> tuple[Target, ...]:
        """What is changed, and what its conditions are on."""
        return (self.target, *(each.target for each in self.when if each.target is not None))

    @property
    def version(self) -> int:
        """The first version of the format that can hold the change."""
        return 2 if self.when or self.decay is not None else 1

    @property
    def needs(self) -> str | None:
        """The measure that the amounts need: "norm", "stats", "samples", or None if the strength needs no measure."""
        if self.amounts is not None:
            return None
        if OPERATIONS[self.op].drawn:
            return "samples"
        if self.strength.unit == "raw":
            return None
        return "norm" if self.strength.unit == "norm" else "stats"

    def resolved(self, space: Space, unit: int, stats: StatsSource | None = None, norms: NormSource | None = None) -> Change:
        """The same change with its amounts computed.

        Raises:
            InterventionError: a measure is missing or useless, or the strength does not fit the space.
        """
        operation = OPERATIONS[self.op]
        vectors = bool(space.unit_shape) and not operation.factor and not operation.length
        if self.amounts is not None:
            shape = tuple(self.amounts.shape[1:])
            if shape != (space.unit_shape if vectors else ()) and not (vectors and space.unit_shape == (-1,) and len(shape) == 1):
                raise InterventionError(
                    f"The amounts of {self.target} have shape {tuple(self.amounts.shape)}.",
                    f"Each must have the shape of its coefficient, {space.unit_shape if vectors else ()}.",
                )
            return self
        if operation.drawn:
            samples = look_up(stats, self.target, "the values").samples
            if samples is None:
                raise InterventionError(
                    f"{self.op} of {self.target} needs values to draw from.", "Give texts: resolve(lm, texts=...)."
                )
            return replace(self, amounts=samples)
        if vectors:
            return replace(self, amounts=self._vectors(space, stats, norms))
        if self.along is not None:
            raise InterventionError(f"The coefficient of {self.target} is a number, not a vector.", "Leave out `along`.")
        return replace(self, amounts=self._numbers(space, unit, stats, norms))

    def _numbers(self, space: Space, unit: int, stats: StatsSource | None, norms: NormSource | None) -> Tensor:
        values, kind = torch.tensor(self.strength.values, dtype=torch.double), self.strength.unit
        if kind == "raw":
            return values
        if kind == "norm":
            # The vector that the unit then writes is `values` times as long as a typical activation.
            norm = float(look_up(norms, space.site_out, "the median norm"))
            # A vector is as long as its own numbers are.
            length = 1.0 if space.unit_shape else float(space.lengths([unit], norm))
            if not length > 0:
                raise InterventionError(f"{self.target} writes nothing: its direction is zero.", "Choose a live one.")
            return values * norm / length
        found: FeatureStats = look_up(stats, self.target, f"the {kind}")
        if kind == "quantile":
            return torch.tensor([found.quantile(q) for q in self.strength.values], dtype=torch.double)
        if kind == "mean":
            return values * float(found.mean)
        if found.max <= 0:
            raise InterventionError(
                f"{self.target} never fires, so a strength of {self.strength} has no value.", "Use the unit norm or raw."
            )
        return values * found.max

    def _vectors(self, space: Space, stats: StatsSource | None, norms: NormSource | None) -> Tensor:
        values, kind = torch.tensor(self.strength.values, dtype=torch.double)[:, None], self.strength.unit
        if kind == "mean":
            return values * torch.as_tensor(look_up(stats, self.target, "the mean").mean)
        if self.along is None and kind == "raw" and not values.any():
            return values.new_zeros(len(values), *map(abs, space.unit_shape))  # rows of a pattern have any length
        if space.unit_shape == (-1,):
            raise InterventionError(
                f"A row of {self.target} is as long as its context, so that no strength sets it.",
                "Scale or ablate it, or set an entry: pattern:3.5/7<-2.",
            )
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
        """JSON values.

        Args:
            name: prefix of the names of this change's tensors.
            tensors: where given, vectors go here by name instead of into the JSON values.
        """

        def pack(tensor: Tensor, part: str) -> Any:
            if tensors is None or tensor.numel() == 1:
                return tensor.tolist()
            tensors[f"{name}.{part}"] = tensor.clone()  # two changes may share one vector, which safetensors refuses
            return {"tensor": f"{name}.{part}"}

        target, value = self.target, self.strength.value
        data: dict[str, Any] = {
            "op": self.op,
            "target": str(target)
            if isinstance(target, Ref)
            else {"site": str(target.site), "values": pack(target.values, "target")},
            "strength": list(value) if isinstance(value, tuple) else value,
            "unit": self.strength.unit,
            "positions": _packed(self.positions),
        }
        if self.along is not None:
            data["along"] = pack(self.along, "along")
        if self.amounts is not None:
            data["amounts"] = pack(self.amounts, "amounts")
        if self.when:
            data["when"] = [each.to_dict(f"{name}.when.{i}", tensors) for i, each in enumerate(self.when)]
        if self.decay is not None:
            data["decay"] = str(self.decay)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor], version: int = 2) -> Change:
        """The change that :meth:`to_dict` was called on.

        Raises:
            SaekitError: a value is missing, unknown, of the wrong type, or names nothing.
        """
        keyed(data, "A change", _REQUIRED, _OPTIONAL | (_SECOND if version > 1 else set()))

        def unpack(value: Any, dtype: torch.dtype, what: str) -> Tensor:
            if isinstance(value, Mapping):
                if set(value) != {"tensor"} or value["tensor"] not in tensors:
                    raise InterventionError(f"{what} names no tensor of the file: {value!r:.80}.")
                return tensors[value["tensor"]]
            return torch.tensor(numbers(value, what), dtype=dtype)

        def vector(given: Any) -> Vector:
            keyed(given, "The target", {"site", "values"})
            return Vector(Site.parse(text(given["site"], "The site")), unpack(given["values"], torch.float32, "The target"))

        target, strength, when = data["target"], data["strength"], data.get("when", [])
        aim: Target = vector(target) if isinstance(target, Mapping) else Ref.parse(text(target, "The target"))
        if not isinstance(when, list):
            raise InterventionError(f"The conditions are {when!r:.80}, not a list.")
        numbers(strength, "The strength", depth=1)
        return cls(
            text(data["op"], "The operation"),
            aim,
            Strength(tuple(strength) if isinstance(strength, list) else strength, text(data["unit"], "The unit")),
            data["positions"],
            unpack(data["along"], torch.double, "along") if "along" in data else None,
            unpack(data["amounts"], torch.double, "amounts") if "amounts" in data else None,
            tuple(Condition.from_dict(each, vector) for each in when),
            Schedule.parse(text(data["decay"], "The schedule")) if "decay" in data else None,
        )


def _packed(positions: Any) -> Any:
    """Positions as JSON values: text, or lists of places."""
    if positions is None or positions.policy is not None:
        return positions if positions is None else str(positions)
    return list(positions.places) if positions.places is not None else [list(row) for row in positions.rows]
