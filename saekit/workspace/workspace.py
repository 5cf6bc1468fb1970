"""A workspace: the folder that holds one study, and the steps that fill it. Every step resumes where it was interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.errors import SaekitError, StoreMismatch, UnknownRef, WorkspaceError, shown
from saekit.files import is_leftover, unwritable
from saekit.ledger import FILE as LEDGER
from saekit.ledger import Ledger
from saekit.workspace import access
from saekit.workspace.dictionaries import Dictionaries
from saekit.workspace.study import FILE, Study, portable

if TYPE_CHECKING:
    from feature_db import FeatureDB
    from saekit.activations import ActivationStore, Corpus, StoredActivations
    from saekit.evaluate.dictionary.cross_entropy import Baseline
    from saekit.lm import LanguageModel
    from saekit.names.site import Site
    from saekit.objects import Ref
    from saekit.sae import SAE
    from saekit.steer import Comparison, Intervention
    from saekit.workspace.verification import Verification
    from trainers import Plan, Route, TrainConfig

_NORM_TOKENS = 8192  # to measure a median on


class Workspace:
    """One study on disk.

    ::

        saekit.toml         what is studied
        activations/        manifest.json and HDF5 shards
        sae/<site>/         a dictionary in sae-lens's layout, its training settings and metrics
        sae/<site>/<name>/  others of that site, to compare
        features.sqlite     the features of all its dictionaries, searchable
        vectors/            decoder directions, memory-mapped
        reports/            evaluations

    Args:
        path: the folder.
        study: what it studies; :meth:`open` reads it from the folder.
    """

    def __init__(self, path: Path, study: Study) -> None:
        self.path, self.study = Path(path).absolute(), study  # so that a later chdir changes nothing
        self._model: LanguageModel | None = None
        self._norms: dict[Site, float] = {}
        self._attached: dict[Site, tuple[str, str]] = {}

    @classmethod
    def open(cls, path: str | Path) -> Workspace:
        """An existing workspace.

        Raises:
            WorkspaceError: the folder is none.
            WorkspaceTooNew: a newer version of saekit wrote it.
        """
        path = Path(path)
        return cls(path, Study.load(path))

    @classmethod
    def plan(cls, path: str | Path, study: Study, lm: LanguageModel | None = None) -> Workspace:
        """The workspace of a study: the existing one if it studies exactly the same, or a new one that :meth:`begin` will write.

        The model and the data are looked up here, so that a mistyped name leaves no folder behind.

        Args:
            lm: the study's model, where it is loaded already.

        Raises:
            StoreMismatch: the folder studies something else; the message names what differs.
            WorkspaceError: the folder holds other things.
            ModelNotFound, CorpusError, UnknownSite, ContextTooLong, ConfigError: the study cannot be done.
        """
        path = Path(path)
        if (path / FILE).exists():
            workspace = cls.open(path)
            if changed := workspace.study.differences(study):
                facts = (
                    f"{name} is {shown(getattr(workspace.study, name))} there and {shown(getattr(study, name))} here"
                    for name in changed
                )
                raise StoreMismatch(f"{path} studies something else: {'; '.join(facts)}.", "Choose another --out folder.")
            workspace._model = lm
            return workspace
        # A killed `begin` leaves at most its unfinished file.
        if path.exists() and (not path.is_dir() or any(map(_is_foreign, path.iterdir()))):
            raise WorkspaceError(f"{path} exists and is not a workspace.", "Choose another --out folder.")
        workspace = cls(path, study)
        workspace._model = lm
        workspace._check()
        return workspace

    def _check(self) -> None:
        """Raise where the study cannot be done."""
        from saekit.activations import check_settings

        check_settings(
            self.lm,
            self.study.sites,
            self.corpus,
            context=self.study.context,
            dtype=self.study.store_dtype,
            packing=self.study.packing,
        )

    def begin(self) -> None:
        """Make the folder where it is not there yet.

        Raises:
            WorkspaceError: it cannot be made.
        """
        if not (self.path / FILE).exists():
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                Ledger(self.path).create()
            except OSError as error:
                raise unwritable(self.path, error) from error
            self.study.save(self.path)

    @contextlib.contextmanager
    def writing(self, *, together: bool = False) -> Iterator[None]:
        """Make the folder where it is not there yet, and hold it for writing; the lock ends with the process, however it ends.

        Args:
            together: the processes that torchrun started share the work, and the first holds it for all.

        Raises:
            WorkspaceError: another command writes here, a symbolic link leads outside, or each of several processes would do the
                whole work.
            Unwritable, StorageFull: nothing can be written here.
        """
        from saekit import processes

        if processes.world() > 1 and not together:
            raise WorkspaceError("Only `saekit train` runs in several processes.", "Run this without torchrun.")
        if not processes.leads():
            yield
            return
        self.begin()
        with access.held(self.path):
            yield

    # What it is made of

    @property
    def lm(self) -> LanguageModel:
        """The language model, loaded when first asked for; :meth:`attach` gives it the dictionaries."""
        if self._model is None:
            from saekit.lm import LanguageModel

            self._model = LanguageModel.load(self.study.model, dtype=self.study.dtype, revision=self.study.revision)
        return self._model

    @cached_property
    def corpus(self) -> Corpus:
        """The documents; of a data set on the hub, those of the commit that the first ones were cached from."""
        from saekit.activations import Corpus
        from saekit.activations.store.manifest import Manifest

        study, folder = self.study, self.path / "activations"
        cached = Manifest.load(folder).provenance["corpus"] if (folder / "manifest.json").exists() else {}
        return Corpus.open(
            study.data,
            text_field=study.text_field,
            split=study.data_split,
            name=study.data_config,
            revision=cached.get("revision", study.data_revision),
            shuffle=study.shuffle_seed,
        )

    @property
    def database_path(self) -> Path:
        """Where the feature database is, or will be."""
        return self.path / "features.sqlite"

    def store(self, other: Workspace | None = None) -> StoredActivations:
        """The cached activations; beside them, as `resid_post.3@other`, those of another workspace, of the same tokens.

        Raises:
            WorkspaceError: nothing is cached yet.
            StoreCorrupt: a shard is missing or cut short.
            StoreMismatch: the other's are of other tokens.
        """
        from saekit.activations import ActivationStore, PairedStores

        if other is not None:
            return PairedStores(self.store(), other=other.store())

        if not (self.path / "activations" / "manifest.json").exists():
            raise WorkspaceError(f"{self.path} has no activations yet.", "Run `saekit cache` or `saekit fit` first.")
        return ActivationStore.open(self.path / "activations")

    @property
    def reports(self) -> Path:
        """The folder of the reports, for writing.

        Raises:
            Unwritable: it is a symbolic link that leads out of the workspace.
        """
        access.check_link(self.path, self.path / "reports")
        return self.path / "reports"

    @property
    def dictionaries(self) -> Dictionaries:
        """The finished dictionaries."""
        return Dictionaries(self.path / "sae")

    def sae(self, site: str | Site | Route, name: str = "") -> SAE:
        """The default dictionary of a site map, or the one called `name`; on the model's device if the model is loaded.

        Raises:
            WorkspaceError: there is no such dictionary.
            SAEFormatError: its files are damaged.
        """
        from saekit.sae import SAE

        device = "cpu" if self._model is None else str(self._model.device)
        return SAE.load(self.dictionaries.folder(*self.dictionaries.find(site, name)), device=device)

    def database(self, name: str = "") -> FeatureDB:
        """The feature database. It refuses features of other dictionaries than those called `name` (empty: the default ones).

        Raises:
            WorkspaceError: no feature is indexed yet.
        """
        from feature_db import FeatureDB

        if not self.database_path.exists():
            raise WorkspaceError(f"{self.path} has no feature database yet.", "Run `saekit index` or `saekit fit` first.")
        return FeatureDB.open(self.database_path, lambda site: self.dictionaries.reading(site, name))

    def ref(self, text: str, name: str = "") -> Ref:
        """The feature meant by `1042` (the only dictionary), `resid_post.3/1042` or `feature:resid_post.3/1042`.

        Args:
            name: of the dictionary; empty for a default one.

        Raises:
            UnknownRef: the text is none of these.
            WorkspaceError: a bare number, and there are several dictionaries.
        """
        from saekit.objects import Ref

        if text.isdecimal():
            return Ref.parse(f"feature:{self.dictionaries.site(None, name)}/{text}")
        ref = Ref.parse(text if ":" in text else f"feature:{text}")
        if ref.kind != "feature":
            raise UnknownRef(f"{text!r} is no feature.", "Write 1042 or feature:resid_post.3/1042.")
        return ref

    # The steps

    def cache(self, *, batch_size: int | None = None, progress: bool = True) -> ActivationStore:
        """Stream the activations of every site to HDF5 (:func:`saekit.activations.write_store`)."""
        from saekit.activations import write_store

        study = self.study
        extra: dict[str, Any] = {} if batch_size is None else {"batch_size": batch_size}
        return write_store(
            self.path / "activations",
            self.lm,
            study.sites,
            self.corpus,
            n_tokens=study.tokens,
            context=study.context,
            dtype=study.store_dtype,
            packing=study.packing,
            progress=progress,
            **extra,
        )

    def train(
        self,
        route: str | Site | Route,
        config: TrainConfig,
        *,
        live: bool = False,
        wandb: str | None = None,
        progress: bool = True,
    ) -> SAE:
        """Train a dictionary at a site, or a transcoder between two (`mlp_in.3->mlp_out.3`); see :meth:`train_all`."""
        from trainers import Plan, Route

        route = Route.parse(route)
        (error,) = self.train_all(
            [Plan(route, config, self.dictionaries.folder(route))], live=live, wandb=wandb, progress=progress
        )
        if error is not None:
            raise error
        return self.sae(route)

    def plans(self, settings: Mapping[str, Any], other: Workspace | None = None) -> list[Plan]:
        """What a description of one or many dictionaries asks for, each in its folder here; see :func:`trainers.plans`.

        Args:
            other: the workspace that sites like `resid_post.3@other` are in.
        """
        from saekit.names.dictionary import check_name
        from trainers import plans

        made = plans(settings, self.path / "sae", self.lm.width if other is None else self.store(other).width)
        for plan in made:
            if plan.name:
                check_name(plan.name, self.dictionaries.names(plan.route))
        return [dataclasses.replace(plan, out=self.dictionaries.folder(plan.route, plan.name)) for plan in made]

    def train_all(
        self,
        plans: Sequence[Plan],
        *,
        other: Workspace | None = None,
        live: bool = False,
        wandb: str | None = None,
        progress: bool = True,
    ) -> list[SaekitError | None]:
        """Train several dictionaries, reading the activations once; returns what stopped each, see :func:`trainers.train_all`.

        Args:
            other: the workspace that sites like `resid_post.3@other` are in.
            live: on the whole corpus, straight out of the model; what is cached is for the rest.

        Raises:
            ConfigError: live, and there is another workspace.
            StoreMismatch: the model or, live, the corpus is another than what was cached.
        """
        from saekit.activations import LiveData, StoredData, TrainingData
        from trainers import train_all

        store = self.store(other)
        store.check_model(self.lm)
        data: TrainingData = LiveData(store, self.lm, self.corpus) if live else StoredData(store)
        return train_all(data, plans, lm=self.lm, wandb=wandb, progress=progress)

    def index(self, site: str | Site | Route, name: str = "", *, progress: bool = True) -> FeatureDB:
        """Put the features of a dictionary into the database, with labels from rules (:func:`feature_db.build`).

        The database has one dictionary for each site that is read; the last one indexed there is searched.

        Raises:
            WorkspaceError: there is no such dictionary.
            ConfigError: it reads several sites.
        """
        from feature_db import build
        from trainers import Route

        place, name = self.dictionaries.find(site, name)
        reads = self.lm.site(Route.parse(place).site)
        store = self.store()
        store.check_model(self.lm)
        return build(
            self.database_path,
            store=store,
            sae=self.sae(place, name),
            lm=self.lm,
            site=reads,
            vectors=self.path / "vectors",
            source=self.dictionaries.folder(place, name),
            progress=progress,
        )

    def evaluate(
        self,
        site: str | Site | Route,
        name: str = "",
        *,
        other: Workspace | None = None,
        again: bool = True,
        baseline: Baseline | None = None,
        progress: bool = True,
    ) -> dict[str, Any]:
        """Quality of the dictionary at `site` on held-out documents, kept in `reports/` too (:mod:`saekit.evaluate.dictionary`),
        with what else is known of it from there.

        Args:
            site: or what a dictionary of several sites reads: `resid_post.1..2`.
            name: of another dictionary at `site`.
            other: as in :meth:`train_all`.
            again: measure it even if `reports/` has what was measured of the same weights.
            baseline: of cross-entropy recovered (:data:`saekit.evaluate.dictionary.cross_entropy.BASELINES`). None takes what was
                measured with any, and measures with zeros at every token.
        """
        from saekit.evaluate.subject import Options
        from saekit.workspace import evaluations

        place, name = self.dictionaries.find(site, name)
        if not again:
            known = evaluations.read(self, self.sae(place, name), place, name)
            if "fvu" in known and baseline in (None, known.get("baseline")):
                return known
        options = Options(baseline=baseline or "zero", progress=progress)
        return evaluations.evaluate(self, place, name, options=options, other=other)

    def train_config(self, site: str | Site, name: str = "") -> TrainConfig | None:
        """The settings with which a dictionary was trained; None for one that was trained elsewhere and has no `train.json`."""
        from trainers import TrainConfig

        record = self.dictionaries.folder(site, name) / "train.json"
        return TrainConfig.load(record) if record.exists() else None

    def evaluation(self, site: str | Site, name: str = "") -> dict[str, Any]:
        """What `reports/` has of what was measured of the dictionary that is there now; empty where it has nothing."""
        from saekit.workspace import evaluations

        place, name = self.dictionaries.find(site, name)
        return evaluations.read(self, self.sae(place, name), place, name)

    def intervention(self, features: Iterable[str], *, op: str = "clamp", name: str = "") -> Intervention:
        """An intervention on features by ID, its strengths turned into coefficients.

        Args:
            features: `1042`, `1042:2` (times its maximum), `1042:0.5norm`, `resid_post.3/1042:q.99`...
            op: clamp, add, scale or ablate.
            name: of the dictionary that the features are of, among others at its site; empty for the default dictionary.

        Raises:
            UnknownRef: a feature does not exist.
            InterventionError: a strength cannot be read.
            WorkspaceError: the database is of other dictionaries than those in the workspace.
        """
        from saekit.steer import FeatureStats, combine, intervene, parse_feature

        database = self.database(name)
        changes = []
        for text in features:
            feature, strength = parse_feature(text, op=op)
            ref = self.ref(feature, name)
            database.stats(ref)
            self.attach(ref.site, name)
            changes.append(intervene(op, ref, strength))

        def stats(ref: Ref) -> FeatureStats:
            return FeatureStats(**dataclasses.asdict(database.stats(ref)))

        return combine(changes).resolve(self.lm, stats=stats, norms=self.median_norm)

    def median_norm(self, site: Site) -> float:
        """Median length of the cached activations at `site`, special tokens left out."""
        if site not in self._norms:
            from saekit.activations import ActivationReader

            reader = ActivationReader(self.store(), [site], split="all", batch_size=_NORM_TOKENS, buffer_tokens=_NORM_TOKENS)
            self._norms[site] = float(reader.sample(_NORM_TOKENS)[site].norm(dim=1).median())
        return self._norms[site]

    def attach(self, site: str | Site | Route | None, name: str = "") -> None:
        """Let `lm.space(site)` give the features of a dictionary; it takes the place of another that is attached there.

        Args:
            site: its site map, or the site that it reads; None: the only dictionary of that name.
            name: empty for the default dictionary.

        Raises:
            WorkspaceError: there is no such dictionary, or the database describes another dictionary at its site.
            StoreMismatch: the database describes another model.
            ConfigError: the dictionary reads several sites.
        """
        from trainers import Route

        place, name = self.dictionaries.find(site, name)
        reads = Route.parse(place).site
        attached = self._attached.get(reads, (place, "") if not name else None)  # or the one that the caller attached
        if attached == (place, name) and reads in self.lm.dictionaries:
            return
        sae = self.sae(place, name)
        self.check_indexed(reads, name)
        self.lm.attach_sae(reads, sae)
        self._attached[reads] = place, name

    def check_indexed(self, site: Site, name: str = "") -> None:
        """Raise where the database describes another dictionary at `site` than the one called `name`, or another model.

        Raises:
            WorkspaceError: the database describes another dictionary; the message names the command that indexes this one.
            StoreMismatch: the database describes another model.
        """
        from saekit.lm.fingerprint import differs

        if not self.database_path.exists():
            return
        with self.database(name) as database:
            for indexed in database.saes():
                if indexed.site != str(site):
                    continue
                database.check_current(site)
                if what := differs(indexed.model, self.lm.fingerprint()):
                    raise StoreMismatch(
                        f"{self.study.model} is another model than {self.path} was made with: its {what} differs.",
                        "Put the old one back, or start a new workspace.",
                    )

    def steer(
        self, prompts: list[str], features: Iterable[str], *, op: str = "clamp", name: str = "", **settings: Any
    ) -> Comparison:
        """Generate with and without features set (:meth:`intervention`), side by side."""
        from saekit.steer import compare

        return compare(self.lm, prompts, self.intervention(features, op=op, name=name), **settings)

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
            WorkspaceError: `accept` names a file that no checksum is kept of.
            Unwritable, StorageFull: nothing can be written.
        """
        from saekit.workspace.verification import record

        with self.writing():
            return record(self.path, list(accept))


def _is_foreign(path: Path) -> bool:
    """Whether `path` is something else than what a killed `begin` leaves."""
    return path.name != LEDGER and not is_leftover(path.name)


def study_of(model: str, sites: tuple[str, ...], data: str, **settings: Any) -> Study:
    """A :class:`Study` whose local paths are absolute, so that commands work from any folder."""
    return Study(model=portable(model), sites=sites, data=portable(data), **settings)
