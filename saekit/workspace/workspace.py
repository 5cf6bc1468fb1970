"""A workspace: the folder that holds one study, and the steps that fill it. Every step resumes where it was interrupted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.errors import SaekitError
from saekit.workspace import steps
from saekit.workspace.folder import WorkspaceFolder
from saekit.workspace.study import Study, study_of

if TYPE_CHECKING:
    from feature_db import FeatureDB
    from saekit.activations import ActivationStore
    from saekit.evaluate.dictionary.cross_entropy import Baseline
    from saekit.evaluate.steering.clamp_effects import ClampSettings
    from saekit.names.address import AddressLike
    from saekit.names.site import Site
    from saekit.names.site_map import SiteMap
    from saekit.sae import SAE
    from saekit.steer import Comparison, FeatureStats, Intervention
    from saekit.steer.target import Target
    from saekit.tasks import Ranking
    from saekit.tasks.ranking import Name
    from saekit.workspace.verification import Verification
    from trainers import Plan, TrainConfig

__all__ = ["Workspace", "study_of"]


class Workspace(WorkspaceFolder):
    """One study on disk, and what can be done with it; for its files see :class:`WorkspaceFolder`.

    Args:
        path: the folder.
        study: the content of its `saekit.toml`; :meth:`open` reads it.
    """

    def __init__(self, path: Path, study: Study) -> None:
        super().__init__(path, study)
        self.attached: dict[Site, tuple[str, str]] = {}
        """(site map, name) of the dictionary that :meth:`attach` gave the model at each site."""
        self.measured: dict[Target, FeatureStats] = {}
        """Statistics of objects without a row in the database, once measured on the corpus."""
        self._norms: dict[Site, float] = {}

    # The steps

    def cache(self, *, batch_size: int | None = None, progress: bool = True) -> ActivationStore:
        """Write the activations of every site to HDF5 (:func:`saekit.activations.write_store`)."""
        return steps.cache(self, batch_size, progress)

    def plans(self, settings: Mapping[str, Any], other: Workspace | None = None) -> list[Plan]:
        """The dictionaries that a description asks for, each with its folder in this workspace; see :func:`trainers.plans`.

        Args:
            other: the workspace that sites like `resid_post.3@other` are in.

        Raises:
            ConfigError: a setting or a name is impossible.
        """
        return steps.plans(self, settings, other)

    def train(
        self,
        place: str | Site | SiteMap,
        config: TrainConfig,
        *,
        live: bool = False,
        wandb: str | None = None,
        progress: bool = True,
    ) -> SAE:
        """Train the default dictionary of a site map (`resid_post.3`, `mlp_in.3->mlp_out.3`); see :meth:`train_all`."""
        from saekit.names.site_map import SiteMap
        from trainers import Plan

        route = SiteMap.parse(place)
        plan = Plan(route, config, self.dictionaries.folder(route))
        (error,) = self.train_all([plan], live=live, wandb=wandb, progress=progress)
        if error is not None:
            raise error
        return self.sae(route)

    def train_all(
        self,
        plans: Sequence[Plan],
        *,
        other: Workspace | None = None,
        live: bool = False,
        wandb: str | None = None,
        progress: bool = True,
    ) -> list[SaekitError | None]:
        """Train several dictionaries in one pass over the activations (:func:`trainers.train_all`).

        Args:
            other: the workspace that sites like `resid_post.3@other` are in.
            live: train on activations of the whole corpus, computed as they are needed; cached ones are for measuring.

        Returns:
            For each plan the error that stopped it, or None.

        Raises:
            ConfigError: `live` together with `other`.
            StoreMismatch: the model, or with `live` the corpus, is not the one that was cached.
        """
        return steps.train_all(self, plans, other=other, live=live, wandb=wandb, progress=progress)

    def index(
        self,
        place: AddressLike,
        name: str = "",
        *,
        labels: Sequence[str] | None = None,
        live: bool = False,
        effects: bool | None = None,
        clamps: ClampSettings | None = None,
        heldout: float | None = None,
        progress: bool = True,
    ) -> FeatureDB:
        """Put the features of a dictionary into the database, with labels from rules; see :meth:`index_all`.

        Args:
            place: its address, its site map, or only what it reads.
            name: empty for the default dictionary.
        """
        settings: dict[str, Any] = {"labels": labels, "live": live, "effects": effects, "clamps": clamps, "heldout": heldout}
        return self.index_all([self.dictionaries.address(place, name)], **settings, progress=progress)

    def index_all(
        self,
        chosen: Sequence[AddressLike | tuple[str, str]] | None = None,
        *,
        labels: Sequence[str] | None = None,
        live: bool = False,
        effects: bool | None = None,
        clamps: ClampSettings | None = None,
        heldout: float | None = None,
        progress: bool = True,
    ) -> FeatureDB:
        """Put the features of dictionaries into the database in one pass, with labels from rules (:func:`feature_db.build_all`).

        Then measure what the database does not have yet: input scores, similar decoder directions, logit histograms, and what a
        clamp of each feature causes on neutral prompts. The activations are not read again for that.

        The rows of earlier dictionaries with the same site map and name are replaced; those of others stay. A dictionary's
        `sparsity.safetensors`, which training wrote from its last steps, is replaced by the exact densities of the database.

        Args:
            chosen: the dictionaries, as addresses or as (site map, name); None: the default one of each site.
            labels: names of label methods (:data:`feature_db.labels.LABEL_METHODS`); None: all.
            live: compute the activations with the model instead of reading them. They need not be cached.
            effects: whether to measure what clamps cause; None: if it takes at most 15 minutes.
            clamps: prompts and strength of the clamps; None: the defaults, or those of an earlier measurement.
            heldout: share of the documents that the index does not count, so that labels can be scored on them; 0 counts all.
                None: 5 %, those that training holds out.
            progress: show a progress bar.

        Raises:
            WorkspaceError: there is no such dictionary, or nothing is cached.
            ConfigError: one reads several sites, or there is no such label method.
        """
        wanted = self.dictionaries.chosen(None) if chosen is None else chosen
        return steps.index(self, wanted, labels, live, effects, clamps, heldout, progress)

    def evaluate(
        self,
        place: AddressLike,
        name: str = "",
        *,
        other: Workspace | None = None,
        again: bool = True,
        baseline: Baseline | None = None,
        progress: bool = True,
    ) -> dict[str, Any]:
        """Measure a dictionary on held-out documents, and keep the result in `reports/` (:mod:`saekit.workspace.evaluations`).

        Args:
            other: the workspace that sites like `resid_post.3@other` are in.
            again: measure even if `reports/` has a result for these weights.
            baseline: for cross-entropy recovered (:data:`saekit.evaluate.dictionary.cross_entropy.BASELINES`). None accepts a
                kept result with any baseline, and measures with zeros at every token.
        """
        from saekit.evaluate.subject import Options
        from saekit.workspace import evaluations

        place, name = self.dictionaries.find(place, name)
        if not again:
            known = evaluations.read(self, self.sae(place, name), place, name)
            if "fvu" in known and baseline in (None, known.get("baseline")):
                return known
        options = Options(baseline=baseline or "zero", progress=progress)
        return evaluations.evaluate(self, place, name, options=options, other=other)

    def evaluation(self, place: AddressLike, name: str = "") -> dict[str, Any]:
        """The kept results for the present weights of a dictionary; empty if it was not evaluated."""
        from saekit.workspace import evaluations

        place, name = self.dictionaries.find(place, name)
        return evaluations.read(self, self.sae(place, name), place, name)

    # Steering

    def attach(self, place: AddressLike | None, name: str = "") -> None:
        """Let `lm.space(site)` give the features of a dictionary; it takes the place of another that is attached there.

        Refs with a name (`feature:resid_post.3@gemma/7`) mean its features too. :meth:`intervention` attaches what it needs by
        itself, each dictionary under its own address.

        Args:
            place: its address, its site map, or the site that it reads; None: the only dictionary of that name.
            name: empty for the default dictionary.

        Raises:
            WorkspaceError: there is no such dictionary, or the database describes another dictionary at its site.
            StoreMismatch: the database describes another model.
            ConfigError: the dictionary reads several sites.
        """
        from saekit.workspace import steering

        steering.attach(self, place, name)

    def median_norm(self, site: Site) -> float:
        """Median length of the cached activations at `site`; special tokens are left out."""
        from saekit.workspace import steering

        if site not in self._norms:
            self._norms[site] = steering.median_norm(self, site)
        return self._norms[site]

    def intervention(self, features: Iterable[str | Name], *, op: str = "clamp", name: str = "") -> Intervention:
        """An intervention on features by ID, with strengths resolved to coefficients.

        Args:
            features: `1042`, `1042:2` (times its maximum), `1042:0.5norm`, `resid_post.3/1042:q.99`, `resid_post.3@gemma/7`...
                or a ranking of features; `@rankings/NAME/5` are the first 5 of a kept one.
            op: clamp, add, scale or ablate.
            name: of the dictionary of features that do not name it; empty for the default one of its site.

        Raises:
            UnknownRef: a feature does not exist.
            InterventionError: a strength cannot be read.
            WorkspaceError: the database describes another dictionary.
        """
        from saekit.workspace import steering

        return steering.intervention(self, features, op=op, name=name)

    def steer(
        self, prompts: list[str], features: Iterable[str | Name], *, op: str = "clamp", name: str = "", **settings: Any
    ) -> Comparison:
        """Generate with and without an :meth:`intervention`, side by side; for `settings` see :func:`saekit.steer.compare`."""
        from saekit.steer import compare

        return compare(self.lm, prompts, self.intervention(features, op=op, name=name), **settings)

    def causal(self, features: Iterable[str | Name], *, name: str = "") -> list[dict[str, Any]]:
        """What a clamp of each feature was measured to do: rows of `feature`, `output_score`, `effect`, `above`, `tokens`.

        See :class:`feature_db.records.Causal`. Features that were not measured are left out.

        Args:
            features, name: as for :meth:`intervention`; strengths make no difference.

        Raises:
            UnknownRef: a feature does not exist.
        """
        from saekit.workspace import steering

        return steering.causal(self, features, name=name)

    # Locating

    def ranking(self, name: str) -> Ranking:
        """A ranking that is kept in `rankings/`.

        Raises:
            WorkspaceError: there is none of that name.
            ConfigError: its file is damaged.
        """
        from saekit.workspace import rankings

        return rankings.read(self, name)

    def keep_ranking(self, name: str, ranking: Ranking) -> Path:
        """Keep a ranking in `rankings/`, in place of another of that name; returns its file.

        Raises:
            ConfigError: no ranking can have that name.
            WorkspaceError: another command is writing here.
            Unwritable, StorageFull: it cannot be written.
        """
        from saekit.workspace import rankings

        with self.writing():
            return rankings.keep(self, name, ranking)

    def attach_all(self) -> None:
        """Let the model's spaces give the features of the default dictionary of each site, or of the named ones without one."""
        from saekit.workspace import steering

        steering.attach_all(self)

    # Checking

    def check(self, *, progress: bool = True) -> Verification:
        """Check every file; see :func:`saekit.workspace.verification.verify`."""
        from saekit.workspace.verification import verify

        return verify(self, progress=progress)

    def verify(self, *, progress: bool = True) -> dict[str, str]:
        """Check every file; returns what was found of each part.

        Raises:
            StoreCorrupt, SAEFormatError, DatabaseError, StoreMismatch, WorkspaceError: names everything that is damaged.
        """
        found = self.check(progress=progress)
        if (error := found.error()) is not None:
            raise error
        return found.checks()

    def record_checksums(self, accept: Iterable[str] = ()) -> list[str]:
        """Add checksums of files that have none, such as those of an earlier version; returns their names.

        Args:
            accept: files, relative to the workspace, whose present content (or absence) is right.

        Raises:
            WorkspaceError: `accept` names a file for which no checksum is kept.
            Unwritable, StorageFull: nothing can be written.
        """
        from saekit.workspace.verification import record

        with self.writing():
            return record(self, list(accept))
