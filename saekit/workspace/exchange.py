"""Exchange of a workspace's features with other tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit import files
from saekit.errors import StoreMismatch, WorkspaceError, shown_path
from saekit.names.address import Address
from saekit.workspace import access
from saekit.workspace.databases import adopt
from saekit.workspace.study import FILE, study_of

if TYPE_CHECKING:
    from feature_db import FeatureDB
    from feature_db.exchange import Imports, Written
    from feature_db.records import IndexedSAE
    from saekit.workspace.workspace import Workspace

DATA = "NeelNanda/pile-10k"
"""The data of a study that an import makes: that which `saekit fit` takes by default."""


def export(
    ws: Workspace,
    folder: str | Path,
    format: str,
    *,
    sites: Sequence[str] = (),
    features: Sequence[str] = (),
    model: str | None = None,
    set: str | None = None,
    progress: bool = True,
) -> list[Written]:
    """Write features of a workspace in the format of another tool (:func:`feature_db.exchange.export`).

    Args:
        ws: the workspace.
        folder: to be made; it must not exist, or be empty.
        format: name of a format of :data:`feature_db.exchange.FORMATS`.
        sites: addresses of dictionaries; none: all that are indexed.
        features: what :meth:`Workspace.refs` reads; numbers (`12,40-50`) where one dictionary is exported. None: all features.
        model: what the other tool calls the model.
        set: what the other tool calls the set of dictionaries.
        progress: show a progress bar.

    Raises:
        UnknownSite, UnknownRef: a dictionary, a feature or a list does not exist.
        ConfigError: a name or a number cannot be read.
        WorkspaceError: nothing is indexed, or the format needs activations and there are none.
        Unwritable, StorageFull: the folder cannot be written.
    """
    from feature_db.exchange import export as write

    with ws.database() as database:
        chosen = _chosen(ws, database, sites, features)
        activations = _Activations(ws) if ws.has_activations else None
        return write(database, folder, format, features=chosen, model=model, set=set, activations=activations, progress=progress)


def import_into(
    path: str | Path,
    source: str | Path,
    *,
    format: str | None = None,
    site: str | None = None,
    name: str = "",
    model: str | None = None,
    progress: bool = True,
) -> list[Imports]:
    """Import what another tool wrote into a workspace (:func:`feature_db.exchange.import_features`).

    Args:
        path: the workspace. One that does not exist is made, with a study of `model`; neither model nor data are looked up.
        source: folder that the other tool wrote.
        format: name of a format of :data:`feature_db.exchange.FORMATS`; None: found by the content.
        site: site map of the dictionary, where the files do not say it.
        name: of the dictionary among those of its sites.
        model: of a new workspace.
        progress: show a progress bar.

    Raises:
        WorkspaceError: there is no workspace, and no model for a new one; or another command is writing there.
        ConfigError, ExchangeError: the source cannot be imported.
        DatabaseError, StorageFull, Unwritable: the workspace cannot be written.
    """
    from feature_db.exchange import import_features
    from saekit.workspace.workspace import Workspace

    folder = Path(path).absolute()
    if (folder / FILE).exists():
        ws = Workspace.open(folder)
        if model is not None and study_of(model, ws.study.sites, "").model != ws.study.model:
            raise StoreMismatch(f"{ws.shown} is of the model {ws.study.model}.", "Leave out --model, or choose another folder.")
        with ws.writing():
            return import_features(ws.database_path, source, format, site=site, name=name, lm=lambda: ws.lm, progress=progress)
    if model is None:
        raise WorkspaceError(f"There is no workspace {shown_path(folder)}.", "Give --model to make one.")
    access.check_free(folder)
    try:
        with files.temporary_folder(folder.parent) as temporary:
            inner = temporary / "workspace"
            inner.mkdir()
            ws = Workspace(inner, study_of(model, (site or "resid_post.0",), DATA))
            done = import_features(ws.database_path, source, format, site=site, name=name, lm=lambda: ws.lm, progress=progress)
            places = tuple(dict.fromkeys(str(Address.parse(each.dictionary).site) for each in done))
            study_of(model, places, DATA).save(inner)
            if folder.exists():
                folder.rmdir()
            files.replace(inner, folder)
            adopt(folder)
    except OSError as error:
        raise files.unwritable(folder, error) from error
    return done


class _Activations:
    """Gives the store, a dictionary and the model."""

    def __init__(self, ws: Workspace) -> None:
        self._ws = ws

    def __call__(self, indexed: IndexedSAE) -> tuple[Any, Any, Any]:
        ws = self._ws
        store = ws.store()
        sae = ws.sae(*ws.dictionaries.find(indexed.address))
        if sae.fingerprint() != indexed.fingerprint:
            raise WorkspaceError(
                f"The dictionary {indexed.dictionary} is not the one that was indexed.", f"Run `saekit index {ws.shown}` first."
            )
        return store, sae, ws.lm


def _chosen(ws: Workspace, database: FeatureDB, sites: Sequence[str], features: Sequence[str]) -> dict[str, list[int] | None]:
    """Addresses of dictionaries with the numbers of their features; None for all."""
    indexed = database.saes()
    saes = [database.dictionary(Address.parse(site)).dictionary for site in sites] or [sae.dictionary for sae in indexed]
    if not features:
        return dict.fromkeys(saes)
    found: dict[str, list[int] | None] = {}
    for ref in ws.refs(features, within=saes[0] if len(saes) == 1 else None):
        numbers = found.setdefault(database.dictionary(ref.address).dictionary, [])
        assert numbers is not None
        numbers.append(ref.unit)
    return found
