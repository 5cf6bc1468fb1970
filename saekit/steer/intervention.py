"""Interventions: which units are changed, how, how strongly and at which tokens. They belong to no model until they are bound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from saekit.errors import InterventionError, SaekitError, StoreMismatch
from saekit.names.address import Address
from saekit.objects import Ref, sae_at
from saekit.steer import files
from saekit.steer.bind import Placed, edits_of
from saekit.steer.change import Change
from saekit.steer.condition import Condition
from saekit.steer.measures import measure
from saekit.steer.operations import OPERATIONS
from saekit.steer.reading import keyed, text
from saekit.steer.schedule import Schedule
from saekit.steer.strength import FeatureStats, NormSource, StatsSource, look_up
from saekit.steer.target import Target, place
from saekit.steer.watching import Watching

if TYPE_CHECKING:
    from saekit.lm import Edit, LanguageModel, Positions

FORMAT = "saekit-intervention"
VERSION = 2
"""The newest version that is read. Conditions and schedules need it; an intervention without them is written as version 1."""


@dataclass(frozen=True, eq=False)
class Intervention:
    """Changes to apply together; `a + b` has the changes of both, and does what `b + a` does.

    Give it, or several, to `lm.generate(interventions=...)` or `lm.run(edits=...)`. At every token, all changes to one space are
    computed from one reading of its original activation: clamping two features sets each as if alone, however much their
    directions overlap and however their positions are written. Changes of one unit are made in the order of their operations:
    ablate, clamp or patch, scale, add, cap, floor. Different spaces at one site (features and neurons, say) are changed one after
    the other, in the order of their first operation that reads, each from what the one before left.
    """

    changes: tuple[Change, ...] = ()
    dictionaries: Mapping[str, str] = field(default_factory=dict)
    """Fingerprint of the SAE at each address (`resid_post.3`, `resid_post.3@gemma`), once resolved: the number of a feature means
    nothing with another SAE."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """JSON values to keep with the intervention, such as why it was chosen and what it did."""

    def __add__(self, other: Intervention) -> Intervention:
        if not isinstance(other, Intervention):
            return NotImplemented
        for site in self.dictionaries.keys() & other.dictionaries.keys():
            if self.dictionaries[site] != other.dictionaries[site]:
                raise StoreMismatch(
                    f"The interventions are on features of two different SAEs at {site}.", "Apply them separately."
                )
        return Intervention(
            self.changes + other.changes, {**self.dictionaries, **other.dictionaries}, {**self.notes, **other.notes}
        )

    def __radd__(self, other: int) -> Intervention:
        return self if isinstance(other, int) else NotImplemented  # sum() starts from 0

    def at(self, positions: Positions | None) -> Intervention:
        """The same changes at other tokens."""
        return replace(self, changes=tuple(replace(change, positions=positions) for change in self.changes))

    def where(self, *conditions: Condition | str) -> Intervention:
        """The same changes only where all conditions hold, and those that they have already; see :class:`Condition`.

        Raises:
            InterventionError: a text is not a condition.
        """
        added = tuple(map(Condition.of, conditions))
        return replace(self, changes=tuple(replace(change, when=(*change.when, *added)) for change in self.changes))

    def decaying(self, schedule: Schedule | str | None) -> Intervention:
        """The same changes with effects that follow a schedule, such as "half:16"; see :class:`Schedule`. None ends it.

        Raises:
            InterventionError: the text is not a schedule.
        """
        return replace(self, changes=tuple(replace(change, decay=schedule) for change in self.changes))  # type: ignore[arg-type]

    def edits(self, lm: LanguageModel) -> list[Edit]:
        """The edits that `run` and `generate` apply. To use them more than once, :meth:`bind` is faster.

        Raises:
            InterventionError: a strength still lacks its measure (see :meth:`resolve`), or two changes conflict.
            UnknownRef: the model has no such object, or no SAE is attached for it.
            StoreMismatch: another SAE is attached than the one that the intervention was made for.
        """
        return edits_of(self._placed(lm))

    def bind(
        self,
        lm: LanguageModel,
        *,
        stats: StatsSource | None = None,
        norms: NormSource | None = None,
        texts: Sequence[str] | Sequence[Sequence[int]] | None = None,
    ) -> BoundIntervention:
        """The intervention on one model: spaces, amounts and edits are made once. Arguments and errors as for :meth:`resolve`.

        Raises:
            InterventionError: two changes set one unit at the same token, as far as this is known before a run.
        """
        placed = self._placed(lm, stats, norms, texts)
        return BoundIntervention(lm, self._with(lm, placed), tuple(edits_of(placed)), dict(lm.attached))

    def resolve(
        self,
        lm: LanguageModel,
        *,
        stats: StatsSource | None = None,
        norms: NormSource | None = None,
        texts: Sequence[str] | Sequence[Sequence[int]] | None = None,
    ) -> Intervention:
        """The same intervention with every strength turned into an amount, and the fingerprints of its SAEs recorded.

        Args:
            lm: the model, with the SAEs attached.
            stats: statistics of single units by ref, for example from a feature database.
            norms: median activation norms by site.
            texts: measures that are needed, and not given by `stats` or `norms`, are taken on these texts or rows of token ids.

        Raises:
            InterventionError: a measure is needed and neither given nor measurable. No value is assumed in its place.
            UnknownRef: the model has no such object, or no SAE is attached for it.
            StoreMismatch: another SAE is attached than the one that the intervention was made for.
        """
        return self._with(lm, self._placed(lm, stats, norms, texts))

    def _placed(
        self,
        lm: LanguageModel,
        stats: StatsSource | None = None,
        norms: NormSource | None = None,
        texts: Sequence[str] | Sequence[Sequence[int]] | None = None,
    ) -> list[Placed]:
        """Every change with its amounts, in its space."""
        self._check_dictionaries(lm)
        places = [place(lm, change.target, onto=OPERATIONS[change.op].onto) for change in self.changes]
        watching = Watching(lm, self.changes)
        if texts is not None:
            wanted = [(change, space, change.needs) for change, (space, _) in zip(self.changes, places)]
            wanted += [(change, space, change.needs) for change, space in watching.limits]
            measured = measure(
                lm,
                [c.target for c, _, needs in wanted if needs == "samples" or (needs == "stats" and stats is None)],
                [space.site_out for _, space, needs in wanted if needs == "norm" and norms is None],
                texts,
            )
            stats = _first(measured.stats, stats)
            norms = norms or measured.norms
        watching.resolve(stats, norms)
        return [
            Placed(watching.resolved(change).resolved(space, unit, stats, norms), space, unit, watching.of(change))
            for change, (space, unit) in zip(self.changes, places)
        ]

    def _with(self, lm: LanguageModel, placed: list[Placed]) -> Intervention:
        """The intervention with the changes of `placed`, and its SAEs on record."""
        changes = tuple(each.change for each in placed)
        targets = [target for change in changes for target in change.targets]
        used = sorted({target.address for target in targets if isinstance(target, Ref) and target.kind == "feature"})
        saes = {str(address): sae_at(lm.attached, address) for address in used}
        found = {address: sae.fingerprint() for address, sae in saes.items() if sae is not None}
        return replace(self, changes=changes, dictionaries=found)

    def _check_dictionaries(self, lm: LanguageModel) -> None:
        for site, fingerprint in self.dictionaries.items():
            sae = sae_at(lm.attached, Address.parse(site))
            if sae is not None and sae.fingerprint() != fingerprint:
                raise StoreMismatch(
                    f"The intervention was made for another SAE than the one that is attached at {site}.",
                    f"Attach the SAE whose fingerprint begins with {fingerprint[:12]}.",
                )

    def to_dict(self, tensors: dict[str, Tensor] | None = None) -> dict[str, Any]:
        """JSON values from which :meth:`from_dict` makes the same intervention.

        Args:
            tensors: where given, vectors go here by name instead of into the JSON.
        """
        return {
            "format": FORMAT,
            "version": max((change.version for change in self.changes), default=1),
            "changes": [change.to_dict(f"changes.{i}", tensors) for i, change in enumerate(self.changes)],
            "dictionaries": dict(self.dictionaries),
            "notes": dict(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Intervention:
        """The intervention that :meth:`to_dict` was called on.

        Raises:
            InterventionError: the values are not those of an intervention, or come from a newer version.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise InterventionError("This is not an intervention of saekit.", f'It lacks "format": "{FORMAT}".')
        version = data.get("version")
        if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= VERSION:
            raise InterventionError(
                f"The intervention has version {version!r:.20}; this saekit reads versions 1 to {VERSION}.", "Update saekit."
            )
        keyed(data, "The intervention", {"format", "version", "changes", "dictionaries", "notes"}, {"sha256"})
        listed, dictionaries = data["changes"], data["dictionaries"]
        if not isinstance(listed, list | tuple):
            raise InterventionError(f"The changes of the intervention are {listed!r:.80}, not a list.")
        if not isinstance(dictionaries, Mapping) or not isinstance(data["notes"], Mapping):
            raise InterventionError("The dictionaries and notes of an intervention must be objects with named values.")
        changes = []
        for number, each in enumerate(listed):
            try:
                changes.append(Change.from_dict(each, tensors or {}, version))
            except (SaekitError, TypeError, ValueError, OverflowError, RecursionError, RuntimeError) as error:
                what = error.what if isinstance(error, SaekitError) else f"{type(error).__name__}: {error}."
                hint = error.hint if isinstance(error, SaekitError) else None
                raise InterventionError(f"Change {number} of the intervention cannot be read: {what}", hint) from error
        for site, fingerprint in dictionaries.items():
            try:
                Address.parse(text(site, "A site"))
            except SaekitError as error:
                raise InterventionError(f"The dictionaries of the intervention name no site: {error.what}", error.hint) from error
            text(fingerprint, f"The fingerprint of the SAE at {site}")
        return cls(tuple(changes), dict(dictionaries), dict(data["notes"]))

    def save(self, path: str | Path) -> None:
        """Write one file, whole or not at all: safetensors where the name ends in `.safetensors`, JSON otherwise.

        Raises:
            InterventionError: the notes have something that JSON cannot hold.
            StorageFull: there is no room for the file.
        """
        files.write(self.to_dict, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Intervention:
        """Read what :meth:`save` wrote.

        Raises:
            InterventionError: there is no such file, or it does not hold an intervention.
        """
        return cls.from_dict(*files.read(Path(path)))


@dataclass(frozen=True, eq=False)
class BoundIntervention:
    """An intervention on one model, made by :meth:`Intervention.bind`. Use it wherever an intervention goes, with that model."""

    added_as: ClassVar[type] = Intervention
    """`run` and `generate` add it to the interventions that are given with it."""

    lm: LanguageModel
    intervention: Intervention
    """Resolved: its amounts and SAEs are on record."""
    bound_edits: tuple[Edit, ...]
    dictionaries: Mapping[Address, Any]
    """The SAEs that were attached."""

    def edits(self, lm: LanguageModel) -> list[Edit]:
        """The edits that `run` and `generate` apply.

        Raises:
            InterventionError: the model is not the one that the intervention is bound to.
            StoreMismatch: another SAE has been attached since.
        """
        if lm is not self.lm:
            raise InterventionError(f"The intervention is bound to {self.lm.name}, another model.", "Bind it to this one.")
        for site in self.intervention.dictionaries:
            if sae_at(lm.attached, Address.parse(site)) is not sae_at(self.dictionaries, Address.parse(site)):
                raise StoreMismatch(f"Another SAE was attached at {site} after the intervention was bound.", "Bind it again.")
        return list(self.bound_edits)

    def __add__(self, other: BoundIntervention | Intervention) -> BoundIntervention:
        added = other.intervention if isinstance(other, BoundIntervention) else other
        return (self.intervention + added).bind(self.lm)

    def __radd__(self, other: Intervention | int) -> BoundIntervention:
        return self if isinstance(other, int) else self + other  # sum() starts from 0; the order makes no difference


def _first(measured: dict[Target, FeatureStats], given: StatsSource | None) -> StatsSource:
    """The measures of `measured`, then those that were given."""
    if given is None:
        return measured

    def found(target: Any) -> Any:
        return measured[target] if target in measured else look_up(given, target, "the measures")

    return found


def combine(interventions: Intervention | Iterable[Intervention]) -> Intervention:
    """One intervention with the changes of all."""
    return interventions if isinstance(interventions, Intervention) else sum(interventions, Intervention())
