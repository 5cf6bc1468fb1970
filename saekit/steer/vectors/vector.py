"""A steering vector: a direction at a site of one model, with the facts of how it was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import InterventionError, SaekitError, StoreMismatch
from saekit.json_files import parse_json
from saekit.names.site import Site
from saekit.objects.spaces import pseudo_inverse
from saekit.steer.amplitude import ablate, add
from saekit.steer.intervention import Intervention
from saekit.steer.strength import DEFAULT, Strength
from saekit.steer.target import Vector
from saekit.tensor_files import SUFFIX, read_tensors, write_tensors

if TYPE_CHECKING:
    from saekit.lm import LanguageModel, Positions

FORMAT = "saekit-steering-vector"
VERSION = 1
_HINT = "Choose a file that `saekit vector fit` wrote."


def check_name(path: Path) -> None:
    """Refuse names that do not end in .safetensors, before long work.

    Raises:
        InterventionError: the name ends otherwise.
    """
    if path.suffix != SUFFIX:
        raise InterventionError(f"The file {path} cannot hold a steering vector.", f"Give a name that ends in {SUFFIX}.")


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction at a site. `2 * happy - sad` and `(a + b) / 2` are vectors too.

    Attributes:
        values: (width,) float32.
        site: where the values were read and are to be added.
        facts: JSON values. `fit_vector` records `method`, `model`, `fingerprint`, `date`, `contrast`, `site_norm` (median
            length of the activations of the negative texts), and for vectors of features
            `dictionary`, `refs` and `deltas`. `unit` is the unit of a strength without one; `card` holds side effects.

    Raises:
        InterventionError: the values are zero or not finite.
    """

    values: Tensor
    site: Site
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        target = Vector(self.site, self.values)  # checks both
        object.__setattr__(self, "values", target.values)
        object.__setattr__(self, "site", target.site)

    @property
    def norm(self) -> float:
        """Length of the vector."""
        return float(self.values.norm())

    @property
    def target(self) -> Vector:
        """The direction as a target of :mod:`saekit.steer.amplitude`."""
        return Vector(self.site, self.values)

    def check(self, lm: LanguageModel) -> None:
        """Refuse another model.

        Raises:
            StoreMismatch: the vector was made with another model.
            InterventionError: the model has another width at the site.
            UnknownSite: the model lacks the site.
        """
        from saekit.lm.fingerprint import differs

        width = lm.width(lm.site(self.site))
        if width != len(self.values):
            raise InterventionError(
                f"The vector has {len(self.values):,} numbers, and {self.site} of {lm.name} has {width:,}.",
                "Fit the vector on this model: `saekit vector fit`.",
            )
        known = self.facts.get("fingerprint")
        if isinstance(known, Mapping) and (what := differs(known, lm.fingerprint())):
            raise StoreMismatch(
                f"The vector was made with {self.facts.get('model', 'a model')}, whose {what} differs from that of {lm.name}.",
                "Fit the vector on this model: `saekit vector fit`.",
            )

    def intervention(self, strength: Strength | float | str | None = None, *, positions: Positions | None = None) -> Intervention:
        """Add the vector.

        Args:
            strength: a number or "2raw" multiplies the vector; "0.8norm" makes the push 0.8 times as long as the median
                activation at the site. None: :data:`saekit.steer.strength.DEFAULT`.
            positions: tokens to steer at.

        Raises:
            InterventionError: the strength is not a finite number, or the unit does not exist for vectors.
        """
        chosen = DEFAULT if strength is None else Strength.of(strength)
        if chosen.unit not in ("raw", "norm"):
            raise InterventionError(
                f"A vector has no strength in the unit {chosen.unit}.",
                "Write it like 0.8norm, or 2raw: twice the vector.",
            )
        largest = max(map(abs, chosen.values)) * float(self.values.abs().max())
        if chosen.unit == "raw" and not largest < torch.finfo(torch.float32).max:
            raise InterventionError(f"A strength of {chosen} makes the vector infinite.", "Give a smaller number.")
        return add(self.target, chosen, positions=positions)

    def ablation(self, *, positions: Positions | None = None) -> Intervention:
        """Project the direction out: x - r r^T x with r = v / |v| (direction ablation, Arditi et al. 2024)."""
        return ablate(self.target, positions=positions)

    # Algebra

    def __mul__(self, factor: float) -> SteeringVector:
        if not isinstance(factor, int | float):
            return NotImplemented
        return self._made(self.values * factor, {"op": "scale", "factor": factor, "of": self._source})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> SteeringVector:
        return self * (1 / divisor)

    def __neg__(self) -> SteeringVector:
        return self * -1

    def __add__(self, other: SteeringVector) -> SteeringVector:
        if not isinstance(other, SteeringVector):
            return NotImplemented
        self._compatible(other)
        return self._made(self.values + other.values, {"op": "add", "of": [self._source, other._source]})

    def __sub__(self, other: SteeringVector) -> SteeringVector:
        return self + -other if isinstance(other, SteeringVector) else NotImplemented

    def blend(self, other: SteeringVector, share: float) -> SteeringVector:
        """(1 - share) * self + share * other, the other at the length of this vector first."""
        self._compatible(other)
        values = (1 - share) * self.values + (share * self.norm / other.norm) * other.values
        return self._made(values, {"op": "blend", "share": share, "of": [self._source, other._source]})

    def orthogonal_to(self, *others: SteeringVector) -> SteeringVector:
        """The part of the vector outside the span of the others, which may overlap.

        Raises:
            InterventionError: the vector lies in that span, or another vector is of another site or width.
        """
        if not others:
            return self
        for other in others:
            self._compatible(other)
        span_ND, own = torch.stack([each.values for each in others]), self.values.double()
        rest = own - own @ pseudo_inverse(span_ND) @ span_ND.double()
        if float(rest.norm()) <= 1e-6 * self.norm:
            raise InterventionError("The vector lies in the span of the others.", "Nothing is left of it to steer with.")
        return self._made(rest.float(), {"op": "orthogonal", "of": [self._source, *(each._source for each in others)]})

    def with_facts(self, **facts: Any) -> SteeringVector:
        """The same values with further facts, such as `card`."""
        return replace(self, facts={**self.facts, **facts})

    @property
    def _source(self) -> Any:
        return self.facts.get("made") or self.facts.get("name") or self.facts.get("method", "vector")

    def _compatible(self, other: SteeringVector) -> None:
        if self.site != other.site or len(self.values) != len(other.values):
            raise InterventionError(
                f"A vector of {len(self.values):,} numbers at {self.site} and one of {len(other.values):,} at {other.site} "
                "cannot be combined.",
                "Fit both at one site of one model.",
            )
        from saekit.lm.fingerprint import differs

        mine, theirs = self.facts.get("fingerprint"), other.facts.get("fingerprint")
        if mine and theirs and (what := differs(mine, theirs)):
            raise StoreMismatch(f"The vectors are of two models: their {what} differs.", "Fit both on one model.")

    def _made(self, values: Tensor, made: Any) -> SteeringVector:
        """A vector made from this one; what holds of the old values alone is dropped."""
        kept = {key: self.facts[key] for key in ("model", "fingerprint", "unit") if key in self.facts}
        return SteeringVector(values, self.site, {**kept, "method": "combined", "made": made})

    # Files

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all, with the facts and a checksum of the values in its header.

        Raises:
            InterventionError: the name does not end in .safetensors, or the facts hold something that JSON cannot.
            StorageFull: there is no room for the file.
        """
        path = Path(path)
        check_name(path)
        head = {
            "format": FORMAT,
            "version": VERSION,
            "site": str(self.site),
            "d_model": len(self.values),
            "facts": dict(self.facts),
        }
        try:
            content = json.dumps({**head, "sha256": _checksum(self.values, head)}, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InterventionError(
                f"The vector cannot be written to {path}: {error}.", "Keep to JSON values in facts."
            ) from error
        parse_json(content, where=f"The vector for {path}", error=InterventionError)
        write_tensors(path, {"values": self.values.contiguous()}, content)

    @classmethod
    def load(cls, path: str | Path, lm: LanguageModel | None = None) -> SteeringVector:
        """Read what :meth:`save` wrote.

        Args:
            path: the file.
            lm: where given, the model that the vector must be of (:meth:`check`).

        Raises:
            InterventionError: there is no such file, it holds no steering vector, or it was changed after it was written.
            StoreMismatch: the vector is of another model.
        """
        head, tensors = read_tensors(Path(path), "a steering vector", error=InterventionError, hint=_HINT)
        keys = {"format", "version", "site", "d_model", "facts", "sha256"}
        if head.get("format") != FORMAT or set(head) != keys or set(tensors) != {"values"}:
            raise InterventionError(f"{path} does not hold a steering vector.", _HINT)
        if head["version"] != VERSION:
            raise InterventionError(f"{path} has version {head['version']!r:.20}; this saekit reads {VERSION}.", "Update saekit.")
        values, own = tensors["values"], head.pop("sha256")
        if values.dtype != torch.float32 or values.shape != (head["d_model"],) or not isinstance(head["facts"], Mapping):
            raise InterventionError(f"The header of {path} disagrees with its values.", _HINT)
        if own != _checksum(values, head):
            raise InterventionError(f"{path} was changed after it was written: its checksum differs.", "Fit the vector again.")
        try:
            found = cls(values, Site.parse(head["site"]), head["facts"])
        except (SaekitError, TypeError, AttributeError) as error:
            raise InterventionError(f"{path} does not hold a steering vector: {error}", _HINT) from error
        if lm is not None:
            found.check(lm)
        return found


def _checksum(values: Tensor, head: Mapping[str, Any]) -> str:
    """sha256 of the values and the header."""
    text = json.dumps(head, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode() + values.contiguous().numpy().tobytes()).hexdigest()
