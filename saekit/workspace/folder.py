"""The folder of a workspace: opening, holding and reading it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from saekit import trust
from saekit.errors import StoreMismatch, UnknownRef, WorkspaceError, shown, shown_path
from saekit.workspace import access
from saekit.workspace.dictionaries import Dictionaries
from saekit.workspace.study import FILE, PLACING, Study

if TYPE_CHECKING:
    from typing import Self

    from feature_db import FeatureDB
    from saekit.activations import CacheConfig, Corpus, StoredActivations
    from saekit.lm import LanguageModel
    from saekit.names.address import AddressLike
    from saekit.names.ref import Ref
    from saekit.names.site import Site
    from saekit.names.site_map import SiteMap
    from saekit.sae import SAE
    from trainers import TrainConfig


class WorkspaceFolder:
    """The files of one study, and the model and data that they name. :class:`Workspace` adds the steps.

    ::

        saekit.toml              the study: model, sites, data
        activations/             manifest.json and HDF5 shards
        sae/<sites>/             the default dictionary of a site map: sae-lens layout, training settings, metrics
        sae/<sites>/<name>/      other dictionaries of that site map
        features.sqlite          the features of its dictionaries, searchable
        vectors/                 decoder directions, memory-mapped
        lenses/                  tuned and Jacobian lenses
        rankings/                what `saekit locate` found
        graphs/                  attribution graphs, and what people made of them
        steering/                steering vectors and interventions
        reports/                 evaluations and pages
        checksums.txt            checksums of these files

    Args:
        path: the folder.
        study: the content of its `saekit.toml`; :meth:`open` reads it.
    """

    def __init__(self, path: Path, study: Study) -> None:
        self.path, self.study = Path(path).absolute(), study  # so that a later chdir changes nothing
        self._model: LanguageModel | None = None
        self._placing: dict[str, Any] = {}

    @classmethod
    def open(cls, path: str | Path, **placing: Any) -> Self:
        """An existing workspace.

        Args:
            path: its folder.
            placing: `device`, `device_map` and `trust_remote_code` for its model, in place of what the study records.

        Raises:
            WorkspaceError: the folder is not a workspace, or its `saekit.toml` cannot be read.
            ConfigError: a setting in it is unknown or impossible.
            WorkspaceTooNew: a newer version of saekit wrote it.
        """
        path = Path(path)
        workspace = cls(path, Study.load(path))
        workspace._placing = placing
        return workspace

    @classmethod
    def plan(cls, path: str | Path, study: Study, lm: LanguageModel | None = None) -> Self:
        """The workspace of a study: the existing one if it has exactly this study, or a new one that :meth:`begin` will write.

        The model and the data are looked up here, so that a mistyped name leaves no folder behind.

        Args:
            lm: the study's model, where it is loaded already.

        Raises:
            StoreMismatch: the folder has another study; the message names what differs.
            WorkspaceError: the folder holds other things.
            ModelNotFound, CorpusError, UnknownSite, ContextTooLong, ConfigError: the study cannot be done.
        """
        path = Path(path)
        if lm is not None and study.trust_remote_code:
            trust.allow(study.model, lm.revision)
        placing = {name: value for name in PLACING if (value := getattr(study, name))}
        if (path / FILE).exists():
            workspace = cls.open(path, **placing)
            if changed := workspace.study.differences(study):
                facts = (
                    f"{name} is {shown(getattr(workspace.study, name))} there and {shown(getattr(study, name))} here"
                    for name in changed
                )
                raise StoreMismatch(f"{path} has another study: {'; '.join(facts)}.", "Choose another --out folder.")
            if lm is not None and workspace.study.bos == study.bos and workspace._commit() in (None, lm.revision):
                workspace._model = lm
            return workspace
        access.check_free(path)
        workspace = cls(path, study)
        workspace._model, workspace._placing = lm, placing
        workspace._check_study()
        return workspace

    def _check_study(self) -> None:
        """Raise where the study cannot be done."""
        from saekit.activations import check_settings

        check_settings(self.lm, self.study.sites, self.corpus, self.cache_config())

    def cache_config(self, batch_size: int | None = None) -> CacheConfig:
        """What of the corpus is cached, and how.

        Args:
            batch_size: contexts in a forward pass; None: see :class:`saekit.activations.CacheConfig`.
        """
        from saekit.activations import CacheConfig

        study = self.study
        return CacheConfig(study.tokens, study.context, study.packing, study.store_dtype, batch_size, train_on=study.train_on)

    def begin(self) -> None:
        """Make the folder and its `saekit.toml` if they do not exist.

        Raises:
            Unwritable, StorageFull: they cannot be made.
        """
        if not (self.path / FILE).exists():
            access.create(self.path)
            self.study.save(self.path)

    @contextlib.contextmanager
    def writing(self, *, together: bool = False) -> Iterator[None]:
        """Make the folder if it does not exist, and hold it for writing; the lock ends with the process, however it ends.

        Args:
            together: the processes that torchrun started share the work, and the first one holds the folder for all.

        Raises:
            WorkspaceError: another command is writing here, or each of several processes would do the whole work.
            Unwritable, StorageFull: nothing can be written here, or a symbolic link leads out of the folder.
        """
        from saekit import processes

        if processes.world() > 1 and not together:
            raise WorkspaceError("Only `saekit train` and `saekit index` run in several processes.", "Run this without torchrun.")
        if not processes.leads():
            yield
            return
        self.begin()
        with access.held(self.path):
            yield

    @property
    def shown(self) -> str:
        """The path as a command in the current folder would give it: relative to this folder if that is shorter."""
        return shown_path(self.path)

    # Its parts

    @property
    def lm(self) -> LanguageModel:
        """The language model, loaded at the first use: of a model on the hub, the commit that the activations are from."""
        if self._model is None:
            from saekit.workspace.loading import load_model

            self._model = load_model(self.study, self._commit(), self._placing)
        return self._model

    def _commit(self) -> str | None:
        """The commit of the model that the activations are from; None before the cache, or if the model is a folder."""
        from saekit.activations.store.manifest import Manifest

        folder = self.path / "activations"
        facts = Manifest.load(folder).provenance["model"] if (folder / "manifest.json").exists() else {}
        return facts.get("revision") or None

    @cached_property
    def corpus(self) -> Corpus:
        """The documents. Of a data set on the hub, those of the commit that the cached ones are from."""
        return self.corpus_with()

    def corpus_with(self, *also: str) -> Corpus:
        """The corpus with other fields of its records than the text, where records have them."""
        from saekit.activations.corpus.base import CorpusSource, open_corpus, open_leaving_out
        from saekit.activations.corpus.fields import Fields
        from saekit.activations.corpus.mixture import read_sources
        from saekit.activations.store.manifest import Manifest

        study, folder = self.study, self.path / "activations"
        cached = Manifest.load(folder).provenance["corpus"] if (folder / "manifest.json").exists() else {}
        mixed = not isinstance(study.data, str)
        keys = [f"{number}.revision" for number in range(len(study.sources))] if mixed else ["revision"]
        revisions = [cached.get(key, study.data_revision) for key in keys]
        asked = CorpusSource(
            read_sources(study.sources) if mixed else study.data,
            text_field=Fields(study.text_field, study.separator, study.records, also),
            split=study.data_split,
            name=study.data_config,
            revision=revisions if mixed else revisions[0],
            shuffle=study.shuffle_seed,
        )
        # Workspaces of earlier versions may record options that their local files do not have. These were never used.
        return open_leaving_out(asked)[0] if cached else open_corpus(asked)

    @property
    def database_path(self) -> Path:
        """Where the feature database is, or will be."""
        return self.path / "features.sqlite"

    @property
    def reports(self) -> Path:
        """The folder of the reports, for writing.

        Raises:
            Unwritable: it is a symbolic link that leads out of the workspace.
        """
        access.check_link(self.path, self.path / "reports")
        return self.path / "reports"

    @property
    def lenses(self) -> Path:
        """The folder of fitted lenses, for writing.

        Raises:
            Unwritable: it is a symbolic link that leads out of the workspace.
        """
        access.check_link(self.path, self.path / "lenses")
        return self.path / "lenses"

    @property
    def dictionaries(self) -> Dictionaries:
        """The dictionaries."""
        return Dictionaries(self.path / "sae")

    @property
    def has_activations(self) -> bool:
        """Whether caching has begun."""
        return (self.path / "activations" / "manifest.json").exists()

    def store(self, other: WorkspaceFolder | None = None) -> StoredActivations:
        """The cached activations.

        Args:
            other: another workspace with the same tokens, whose sites are added as `resid_post.3@other`.

        Raises:
            WorkspaceError: nothing is cached yet.
            StoreCorrupt: a shard is missing or cut short.
            StoreMismatch: the other workspace has other tokens.
        """
        from saekit.activations import ActivationStore, PairedStores

        if other is not None:
            return PairedStores(self.store(), other=other.store())
        if not self.has_activations:
            raise WorkspaceError(f"{self.shown} has no activations yet.", "Run `saekit cache` or `saekit fit` first.")
        return ActivationStore.open(self.path / "activations")

    def sae(self, place: AddressLike, name: str = "") -> SAE:
        """A dictionary, on the model's device if the model is loaded; see :meth:`Dictionaries.find`.

        Raises:
            WorkspaceError: there is no such dictionary.
            SAEFormatError: its files are damaged.
        """
        from saekit.sae import SAE

        device = "cpu" if self._model is None else str(self._model.device)
        return SAE.load(self.dictionaries.folder(*self.dictionaries.find(place, name)), device=device)

    def train_config(self, place: str | Site | SiteMap, name: str = "") -> TrainConfig | None:
        """The settings with which a dictionary was trained; None for one that was trained elsewhere and has no `train.json`.

        Raises:
            ConfigError: the file is damaged.
        """
        from trainers import TrainConfig

        record = self.dictionaries.folder(place, name) / "train.json"
        return TrainConfig.load(record) if record.exists() else None

    def database(self) -> FeatureDB:
        """The feature database. It refuses features of a dictionary that is no longer the one with its address.

        Raises:
            WorkspaceError: no feature is indexed yet.
        """
        from feature_db import FeatureDB

        if not self.database_path.exists():
            raise WorkspaceError(f"{self.shown} has no feature database yet.", f"Run `saekit index {quote(self.shown)}` first.")
        return FeatureDB.open(self.database_path, self.dictionaries.folders)

    def ref(self, text: str, name: str = "") -> Ref:
        """The feature that a user means.

        Args:
            text: `1042` (of the only dictionary), `resid_post.3/1042`, `resid_post.3@gemma/1042` (of the one called gemma), or
                one of these with `feature:` before it.
            name: of the dictionary, where the text does not have it; empty for the default one.

        Raises:
            UnknownRef: the text does not name a feature, or has another name than `name`.
            WorkspaceError: a bare number, and there are several dictionaries.
        """
        from saekit.names.ref import Ref

        if text.isdecimal():
            return Ref.parse(f"feature:{self._only_dictionary(name)}/{text}")
        ref = Ref.parse(text if ":" in text else f"feature:{text}")
        if ref.kind != "feature":
            raise UnknownRef(f"{text!r} does not name a feature.", "Write 1042 or feature:resid_post.3/1042.")
        if name and ref.name and name != ref.name:
            raise UnknownRef(f"{ref} is of {ref.name!r}, and the name given is {name!r}.", "Give one of them.")
        return replace(ref, name=ref.name or name)

    def _only_dictionary(self, name: str) -> str:
        """The address of the only dictionary: of those in the workspace or, where only features were imported, of those."""
        from feature_db.records import IMPORTED

        try:
            return str(self.dictionaries.short(self.dictionaries.address(None, name)))
        except WorkspaceError:
            if not self.database_path.exists():
                raise
            with self.database() as database:
                named = [sae for sae in database.saes() if sae.architecture == IMPORTED and name in ("", sae.name)]
            if len(named) != 1 or self.dictionaries.all():
                raise
            return named[0].dictionary

    def refs(self, texts: str | Iterable[str], name: str = "", *, within: str | None = None) -> list[Ref]:
        """The features that a user means by one or several texts, each feature once.

        Args:
            texts: what :meth:`ref` reads, several with commas, a range (`0-99`, `resid_post.3/0-99`), or a list that people made
                (`@safety`).
            name: of the dictionary, where a text does not have it; empty for the default one.
            within: address of the dictionary of bare numbers; None: the only one.

        Raises:
            UnknownRef: a text does not name a feature, or there is no such list.
            WorkspaceError: a bare number, and there are several dictionaries.
        """
        from saekit.workspace.refs import parse

        return parse(self, texts, name, within)
