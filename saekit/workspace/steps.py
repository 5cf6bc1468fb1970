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
    from saekit.activations import ActivationStore
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
    place: AddressLike,
    name: str,
    labels: Sequence[str] | None,
    effects: bool | None,
    clamps: ClampSettings | None,
    progress: bool,
) -> FeatureDB:
    """See :meth:`Workspace.index`."""
    import torch

    import feature_db
    from saekit.sae.files import save_sparsity
    from saekit.workspace.effects import complete

    config = feature_db.BuildConfig(labels=None if labels is None else tuple(labels))
    address = ws.dictionaries.address(place, name)
    reads, folder = ws.lm.site(address.site), ws.dictionaries.folder(address.place, address.name)
    store = ws.store()
    store.check_model(ws.lm)
    database = feature_db.build(
        ws.database_path,
        store=store,
        sae=ws.sae(address),
        lm=ws.lm,
        site=reads,
        name=address.name,
        vectors=ws.path / "vectors",
        source=folder,
        config=config,
        progress=progress,
    )
    n_tokens = next(each.n_tokens for each in database.saes() if each.address == address)
    save_sparsity(folder, torch.from_numpy(database.densities(address)), n_tokens)
    complete(ws, database, address, asked=effects, settings=clamps, progress=progress)
    return database
