"""Scores of the labels of a workspace's features, on documents that the index did not count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saekit.errors import UnknownRef
from saekit.names.ref import Ref

if TYPE_CHECKING:
    from feature_db.scorers import Scored
    from saekit.names.address import AddressLike
    from saekit.workspace.workspace import Workspace


def score(
    ws: Workspace,
    place: AddressLike | None,
    name: str = "",
    *,
    scorers: Sequence[str] | None = None,
    features: str | Iterable[str | Ref] | None = None,
    again: bool = False,
    options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> list[Scored]:
    """Score the labels of a dictionary's features; see :func:`feature_db.scorers.score`.

    Args:
        place: its address, its site map, or only what it reads; None: the only dictionary.
        name: empty for the default dictionary.
        features: refs, or what :meth:`Workspace.refs` reads, where a bare number means a feature of the dictionary. Features of
            other dictionaries are left out. None: all.

    Raises:
        WorkspaceError: there is no such dictionary, or none of the features is one of its own.
        StoreMismatch, ConfigError, UnknownRef: see :func:`feature_db.scorers.score`.
    """
    from feature_db.scorers import score as score_labels
    from saekit.activations import ActivationStore
    from saekit.workspace.steps import computed

    address = ws.dictionaries.address(place, name)
    store = ws.store() if ws.has_activations else computed(ws, progress)
    if isinstance(store, ActivationStore):
        store.check_model(ws.lm)
    with ws.database() as database:
        numbers = None
        if features is not None:
            dictionary = database.dictionary(address).dictionary
            given = [features] if isinstance(features, str) else list(features)
            read = ([each] if isinstance(each, Ref) else ws.refs(each, address.name, within=str(address)) for each in given)
            refs = [ref for found in read for ref in found]
            numbers = [ref.unit for ref in refs if database.dictionary(ref.address).dictionary == dictionary]
            if not numbers:
                raise UnknownRef(f"None of the features is one of {dictionary}.", "Name its features, or another --site.")
        return score_labels(
            database,
            address,
            store=store,
            sae=ws.sae(address),
            lm=ws.lm,
            scorers=scorers,
            features=numbers,
            again=again,
            options=options,
            progress=progress,
        )
