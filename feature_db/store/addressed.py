"""Finds the indexed dictionary that an address or a ref means, and refuses one that is out of date."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from feature_db.arguments import whole
from feature_db.records import IMPORTED, IndexedSAE
from feature_db.store import current, read
from saekit.errors import StoreMismatch, UnknownRef, UnknownSite, WorkspaceError
from saekit.names.address import Address
from saekit.names.ref import Ref
from saekit.names.site import Site

if TYPE_CHECKING:
    from saekit.sae import SAE

_log = logging.getLogger(__name__)
FeatureName = Ref | str | tuple[str | Site | Address, int]
"""Ways to name a feature."""
Folders = Callable[[str], Sequence[Path]]
"""Returns the folders that a dictionary may be in, given its address as text."""


class Addressed:
    """The dictionaries of one database.

    Args:
        path: the database.
        folders: where the dictionaries are kept; None if this is unknown.
        reading: gives a connection that holds a read lock.
    """

    def __init__(
        self, path: Path, folders: Folders | None, reading: Callable[[], AbstractContextManager[sqlite3.Connection]]
    ) -> None:
        self._path, self._folders, self._reading = path, folders, reading
        self._compared: dict[int, tuple[object, ...]] = {}

    def all(self) -> list[IndexedSAE]:
        """Every indexed dictionary, by address."""
        with self._reading() as db:
            return read.saes(db, self._path.parent)

    def one(self, dictionary: str | Site | Address) -> IndexedSAE:
        """The dictionary that an address means.

        Raises:
            UnknownSite: it is not indexed, or the address means several.
            WorkspaceError: another dictionary is there now.
        """
        saes, address = self.all(), Address.parse(dictionary)
        found = find(saes, address)
        if found is None:
            raise UnknownSite(*self._missing(address, saes))
        self.check(found)
        return found

    def feature(self, ref: FeatureName, number: int | None = None) -> tuple[IndexedSAE, int]:
        """The dictionary of a feature, and the number of the feature in it; see :meth:`feature_db.FeatureDB.feature`."""
        if isinstance(ref, tuple):
            ref = Ref.feature(*ref)
        elif number is not None:
            ref = Ref.feature(str(ref), whole(number, "number"))
        ref, saes = Ref.parse(ref), self.all()
        if ref.kind != "feature":
            raise UnknownRef(f"{ref} is no feature.", f"Features here: {_listed(saes)}.")
        sae = find(saes, ref.address)
        if sae is None:
            raise UnknownRef(*self._missing(ref.address, saes))
        self.check(sae)
        if ref.unit >= sae.n_features:
            raise UnknownRef(
                f"There is no {ref}: {sae.dictionary} has {sae.n_features} features.",
                f"Choose one from 0 to {sae.n_features - 1}.",
            )
        return sae, ref.unit

    def searched(self, site: str | Site | None, dictionary: str | Site | Address | None, sae: SAE | None) -> list[IndexedSAE]:
        """The dictionaries that a search covers; see :meth:`feature_db.FeatureDB.search`.

        A search of all dictionaries leaves out those that were replaced by another since they were indexed, with a warning.

        Raises:
            UnknownSite: nothing is indexed there.
            StoreMismatch: `sae` is not the dictionary whose features are indexed.
            WorkspaceError: a dictionary that is named, or each of all, was replaced by another.
        """
        place = site if site is not None or sae is None else sae.cfg.site
        if dictionary is not None:
            found = [self.one(dictionary)]
        else:
            found = [each for each in self.all() if place is None or each.site == str(Site.parse(place))]
            if place is not None and not found:
                raise UnknownSite(f"{self._path.name} has no features of {place}.", f"It has those of {_listed(self.all())}.")
        if sae is not None and found:
            same = [each for each in found if each.fingerprint == sae.fingerprint()]
            if not same:
                raise StoreMismatch(
                    f"The given dictionary is not the one whose features are indexed at {found[0].dictionary}.",
                    current.index_again(self._path.parent, found[0].address),
                )
            found = same[:1]
        if place is None and dictionary is None:
            return self._present(found)
        for each in found:
            self.check(each)
        return found

    def _present(self, saes: Sequence[IndexedSAE]) -> list[IndexedSAE]:
        """Those of `saes` that are still at their addresses; the others are named in a warning.

        Raises:
            WorkspaceError: none of them is.
        """
        stale: dict[int, WorkspaceError] = {}
        for each in saes:
            try:
                self.check(each)
            except WorkspaceError as error:
                stale[each.id] = error
        if stale and len(stale) == len(saes):
            raise next(iter(stale.values()))
        for each in saes:
            if each.id in stale:
                _log.warning("The search leaves out %s. %s %s", each.dictionary, stale[each.id].what, stale[each.id].hint)
        return [each for each in saes if each.id not in stale]

    def check(self, sae: IndexedSAE) -> None:
        """Refuse features of another dictionary than the one that has their address now.

        Raises:
            WorkspaceError: another dictionary is there; the message names the command that indexes it.
        """
        if self._folders is None:
            return
        folders = self._folders(str(sae.address))
        state = sae.fingerprint, *map(current.signature, folders)
        if self._compared.get(sae.id) != state:  # else it was compared already
            with self._reading() as db:
                current.check(sae, read.files(db, sae.id), folders, self._path.parent)
            self._compared[sae.id] = state

    def fresh(self, sae: IndexedSAE) -> bool | None:
        """See :meth:`feature_db.FeatureDB.fresh`."""
        if self._folders is None:
            return None
        folders = self._folders(str(sae.address))
        if sae.architecture == IMPORTED and not any(map(current.signature, folders)):
            return True
        with self._reading() as db:
            return current.fresh(read.files(db, sae.id), folders)

    def _missing(self, address: Address, saes: Sequence[IndexedSAE]) -> tuple[str, str]:
        """The message and the hint about a dictionary that is not indexed."""
        folders = () if self._folders is None else self._folders(str(address))
        exists = any(current.signature(folder) is not None for folder in folders)
        hint = f"It has those of {_listed(saes)}."
        hint = f"{current.index_again(self._path.parent, address)} {hint}" if exists else hint
        return f"{self._path.name} has no features of {address}.", hint


def find(saes: Sequence[IndexedSAE], address: Address) -> IndexedSAE | None:
    """The dictionary that an address means, or None.

    A site alone means the SAE there. Where a site has no SAE, it means the only transcoder that reads it.

    Raises:
        UnknownSite: it means several transcoders.
    """
    if address.place.crosses:
        return None
    site, out = str(address.site), str(address.place.writes[0])
    named = [sae for sae in saes if (sae.site, sae.name) == (site, address.name)]
    exact = [sae for sae in named if sae.site_out == out]
    if exact or address.site_out is not None:
        return exact[0] if exact else None
    if len(named) > 1:
        raise UnknownSite(f"Several transcoders read {address}.", f"Say which: {', '.join(sae.dictionary for sae in named)}.")
    return named[0] if named else None


def _listed(saes: Sequence[IndexedSAE]) -> str:
    return ", ".join(f"{sae.dictionary} (0 to {sae.n_features - 1})" for sae in saes) or "none"
