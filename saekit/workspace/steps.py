"""The steps that fill a workspace. Each resumes where it was interrupted; :class:`Workspace` has them as methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.errors import SaekitError
from saekit.names.address import Address

if TYPE_CHECKING:
    from feature_db import FeatureDB
    from saekit.activations import ActivationStore, ComputedActivations, StoredActivations
    from saekit.evaluate.steering.clamp_effects import ClampSettings
    from saekit.names.address import AddressLike
    from saekit.workspace.workspace import Workspace
    from trainers import Plan


def cache(ws: Workspace, batch_size: int | None, progress: bool) -> ActivationStore:
    """See :meth:`Workspace.cache`."""
    from saekit.activations import write_store

    config = ws.cache_config(batch_size)
    return write_store(ws.path / "activations", ws.lm, ws.study.sites, ws.corpus, config, progress=progress)


def plans(ws: Workspace, settings: Mapping[str, Any], other: Workspace | None) -> list[Plan]:
    """See :meth:`Workspace.plans`."""
    import trainers
    from saekit.names.dictionary import check_name

    settings = _with_folders(ws, settings)
    made = trainers.plans(settings, ws.path / "sae", ws.lm.width if other is None else ws.store(other).width)
    for plan in made:
        if plan.name:
            check_name(plan.name, ws.dictionaries.names(plan.route))
    return [dataclasses.replace(plan, out=ws.dictionaries.folder(plan.route, plan.name)) for plan in made]


def _with_folders(ws: Workspace, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with folders in place of addresses of dictionaries to start from.

    Raises:
        WorkspaceError: an address means no dictionary.
    """

    def found(source: Any) -> Any:
        if isinstance(source, list | tuple):
            return [found(each) for each in source]
        if not isinstance(source, str) or Path(source).expanduser().exists():
            return source
        try:
            address = Address.parse(source)
        except SaekitError:  # the name of a published one
            return source
        return str(ws.dictionaries.folder(*ws.dictionaries.find(address)))

    def replaced(part: Any) -> Any:
        return {**part, "from": found(part["from"])} if isinstance(part, Mapping) and "from" in part else part

    changed = replaced(dict(settings))
    if "grid" in changed:
        changed["grid"] = replaced(changed["grid"])
    if isinstance(changed.get("runs"), list | tuple):
        changed["runs"] = [replaced(run) for run in changed["runs"]]
    return changed


def train_all(
    ws: Workspace, plans: Sequence[Plan], *, other: Workspace | None, live: bool, wandb: str | None, progress: bool
) -> list[SaekitError | None]:
    """See :meth:`Workspace.train_all`."""
    import trainers
    from saekit.activations import LiveData, StoredData, TrainingData

    store = ws.store(other)
    store.check_model(ws.lm)
    data: TrainingData = LiveData(store, ws.lm, ws.corpus) if live else StoredData(store)
    return trainers.train_all(data, plans, lm=ws.lm, wandb=wandb, progress=progress)


def index(
    ws: Workspace,
    chosen: Sequence[AddressLike | tuple[str, str]],
    labels: Sequence[str] | None,
    live: bool,
    effects: bool | None,
    clamps: ClampSettings | None,
    heldout: float | None,
    progress: bool,
) -> FeatureDB:
    """See :meth:`Workspace.index_all`."""
    import torch

    import feature_db
    from saekit import processes
    from saekit.activations.loader.source import HELDOUT
    from saekit.sae.files import save_sparsity
    from saekit.workspace.effects import complete

    heldout = HELDOUT if heldout is None else heldout
    split: dict[str, Any] = {"split": "train" if heldout else "all", "heldout": heldout}
    config = feature_db.BuildConfig(labels=None if labels is None else tuple(labels))
    addresses = [ws.dictionaries.address(*each) if isinstance(each, tuple) else ws.dictionaries.address(each) for each in chosen]
    folders = [ws.dictionaries.folder(each.place, each.name) for each in addresses]
    store = computed(ws, progress) if live else _stored(ws)
    subjects = [
        feature_db.Subject(ws.sae(address), ws.lm.site(address.site), address.name, folder)
        for address, folder in zip(addresses, folders)
    ]
    database = feature_db.build_all(
        ws.database_path, subjects, store=store, lm=ws.lm, vectors=ws.path / "vectors", config=config, **split, progress=progress
    )
    n_tokens = {each.address: each.n_tokens for each in database.saes()}
    for address, folder in zip(addresses, folders):
        if processes.leads():
            save_sparsity(folder, torch.from_numpy(database.densities(address)), n_tokens[address])
            complete(ws, database, address, asked=effects, settings=clamps, progress=progress)
    return database


def _stored(ws: Workspace) -> StoredActivations:
    store = ws.store()
    store.check_model(ws.lm)
    return store


def computed(ws: Workspace, progress: bool) -> ComputedActivations:
    """The rows of the workspace's store, computed; where it has a complete one, they are known to be those."""
    from saekit.activations import ComputedActivations

    stored = _stored(ws) if ws.has_activations else None
    known = None if stored is None else stored.n_tokens
    recorded = None if stored is None else stored.provenance
    return ComputedActivations(
        ws.lm, ws.study.sites, ws.corpus, ws.cache_config(), recorded=recorded, known_tokens=known, progress=progress
    )
