"""Interventions: what is changed, how strongly and where, apart from any model that it is applied to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from saekit.errors import InterventionError, StoreMismatch
from saekit.names.site import Site
from saekit.objects import Ref
from saekit.steer import files
from saekit.steer.apply import edits_of
from saekit.steer.change import Change
from saekit.steer.measure import measure
from saekit.steer.strength import NormSource, StatsSource
from saekit.steer.target import place

if TYPE_CHECKING:
    from saekit.lm import Edit, LanguageModel, Positions

FORMAT = "saekit-intervention"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Intervention:
    """Changes to apply together; `a + b` has the changes of both, and does what `b + a` does.

    Give it, or several, to `lm.generate(interventions=...)` or `lm.run(edits=...)`. Changes to one space are computed from one
    reading of it, in the order ablate, clamp, scale, add: clamping two features sets each as if alone, whatever they share.
    """

    changes: tuple[Change, ...] = ()
    dictionaries: Mapping[str, str] = field(default_factory=dict)
    """Fingerprint of the SAE that each site's features are of, once known: a number means nothing with another SAE."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Anything to keep with it (JSON values), such as what it was chosen for and how it did."""

    def __add__(self, other: Intervention) -> Intervention:
        for site in self.dictionaries.keys() & other.dictionaries.keys():
            if self.dictionaries[site] != other.dictionaries[site]:
                raise StoreMismatch(f"The interventions are on features of two different SAEs at {site}.", "Keep them apart.")
        return Intervention(
            self.changes + other.changes, {**self.dictionaries, **other.dictionaries}, {**self.notes, **other.notes}
        )

    def __radd__(self, other: int) -> Intervention:
        return self  # sum() starts from 0

    def at(self, positions: Positions | None) -> Intervention:
        """The same changes at other tokens."""
        return replace(self, changes=tuple(replace(change, positions=positions) for change in self.changes))

    def edits(self, lm: LanguageModel) -> list[Edit]:
        """What `run` and `generate` apply.

        Raises:
            InterventionError: a strength still lacks its measure (see :meth:`resolve`), or two changes conflict.
            UnknownRef: the model has no such object, or no SAE is attached for it.
            StoreMismatch: another SAE is attached than the one it was made for.
        """
        self._check_dictionaries(lm)
        return edits_of(lm, self.changes)

    def resolve(
        self,
        lm: LanguageModel,
        *,
        stats: StatsSource | None = None,
        norms: NormSource | None = None,
        texts: list[str] | None = None,
    ) -> Intervention:
        """The same intervention with every strength turned into a coefficient, and the SAEs that it is for on record.

        Args:
            lm: with the SAEs attached.
            stats: of single units, by ref: from a feature database, say.
            norms: median activation norms, by site.
            texts: whatever is needed of `stats` or `norms` and not given is measured on these.

        Raises:
            InterventionError: a measure is needed and neither given nor measurable. Nothing is assumed in its place.
            UnknownRef: the model has no such object, or no SAE is attached for it.
            StoreMismatch: another SAE is attached than the one it was made for.
        """
        self._check_dictionaries(lm)
        places = [place(lm, change.target) for change in self.changes]
        if texts is not None:
            measured = measure(
                lm,
                [change.target for change in self.changes if change.needs == "stats" and stats is None],
                [space.site_out for change, (space, _) in zip(self.changes, places) if change.needs == "norm" and norms is None],
                texts,
            )
            stats, norms = stats or measured.stats, norms or measured.norms
        changes = tuple(change.resolved(space, unit, stats, norms) for change, (space, unit) in zip(self.changes, places))
        sites = sorted({c.site for c in changes if isinstance(c.target, Ref) and c.target.kind == "feature"})
        return replace(self, changes=changes, dictionaries={str(site): lm.dictionaries[site].fingerprint() for site in sites})

    def _check_dictionaries(self, lm: LanguageModel) -> None:
        for site, fingerprint in self.dictionaries.items():
            sae = lm.dictionaries.get(Site.parse(site))
            if sae is not None and sae.fingerprint() != fingerprint:
                raise StoreMismatch(
                    f"The intervention was made for another SAE than the one attached at {site}.",
                    f"Attach the SAE whose fingerprint begins with {fingerprint[:12]}.",
                )

    def to_dict(self, tensors: dict[str, Tensor] | None = None) -> dict[str, Any]:
        """JSON values from which :meth:`from_dict` makes the same intervention.

        Args:
            tensors: where given, vectors go here by name instead of into the JSON.
        """
        return {
            "format": FORMAT,
            "version": VERSION,
            "changes": [change.to_dict(f"changes.{i}", tensors) for i, change in enumerate(self.changes)],
            "dictionaries": dict(self.dictionaries),
            "notes": dict(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Intervention:
        """The intervention that :meth:`to_dict` was called on.

        Raises:
            InterventionError: it is none, is damaged, or comes from a newer version.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise InterventionError("This is no intervention of saekit.", f'It lacks "format": "{FORMAT}".')
        if data.get("version") != VERSION:
            raise InterventionError(f"The intervention has version {data.get('version')}, not {VERSION}.", "Update saekit.")
        try:
            changes = tuple(Change.from_dict(change, tensors or {}) for change in data["changes"])
            return cls(changes, dict(data["dictionaries"]), dict(data["notes"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InterventionError(f"The intervention is damaged: {error!r}.", "Take it anew from where it came.") from error

    def save(self, path: str | Path) -> None:
        """Write one file, whole or not at all: JSON, or with vectors kept as tensors where it is named `.safetensors`."""
        files.write(self.to_dict, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Intervention:
        """Read what :meth:`save` wrote.

        Raises:
            InterventionError: there is no such file, or it holds no intervention.
        """
        return cls.from_dict(*files.read(Path(path)))


def combine(interventions: Intervention | Iterable[Intervention]) -> Intervention:
    """One intervention with the changes of all."""
    return interventions if isinstance(interventions, Intervention) else sum(interventions, Intervention())
