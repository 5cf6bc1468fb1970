"""What the application has open: the workspaces, each under the name that its pages have in their addresses."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, HTTPException, Request

from saekit.errors import UnknownRef
from saekit.serve.settings import ServeSettings
from saekit.serve.worker import Worker
from saekit.workspace.workspace import Workspace

if TYPE_CHECKING:
    from feature_db import FeatureDB
    from saekit.sae import SAE


class Opened:
    """One workspace that is served.

    Args:
        name: in addresses.
        workspace: the folder.
    """

    def __init__(self, name: str, workspace: Workspace) -> None:
        self.name, self.workspace = name, workspace
        self._database: FeatureDB | None = None
        self._saes: dict[tuple[str, int], SAE] = {}
        self._lock = threading.Lock()

    @property
    def database(self) -> FeatureDB:
        """Its feature database, which the threads of the server share.

        Raises:
            WorkspaceError: no feature is indexed yet.
        """
        with self._lock:
            if self._database is None:
                self._database = self.workspace.database()
            return self._database

    def sae(self, address: str) -> SAE:
        """A dictionary with its weights. The last two are kept; call this in the model worker.

        Raises:
            WorkspaceError: there is no such dictionary.
            SAEFormatError: its files are damaged.
        """
        weights = self.workspace.dictionaries.folder(*self.workspace.dictionaries.find(address)) / "sae_weights.safetensors"
        key = address, weights.stat().st_mtime_ns if weights.exists() else 0
        if key not in self._saes:
            while len(self._saes) > 1:
                del self._saes[next(iter(self._saes))]
            self._saes[key] = self.workspace.sae(address)
        return self._saes[key]

    @contextmanager
    def writing(self) -> Iterator[FeatureDB]:
        """The database, while no other command writes to the workspace.

        Raises:
            WorkspaceError: another command is writing there.
            Unwritable, StorageFull: nothing can be written there.
        """
        database = self.database
        with self._writes, self.workspace.writing():
            yield database

    _writes = threading.Lock()

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None


def address_name(folder: str) -> str:
    """A name of a folder that stands in an address as it is."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", folder).strip("-") or "workspace"


class Served:
    """Everything that requests share: settings and workspaces.

    Args:
        workspaces: folders of workspaces.

    Attributes:
        worker: does all work with models.

    Raises:
        WorkspaceError: a folder is not a workspace.
    """

    def __init__(self, workspaces: Sequence[str | Path], settings: ServeSettings) -> None:
        self.settings = settings
        self.worker = Worker()
        self.workspaces: dict[str, Opened] = {}
        for path in workspaces:
            opened = Workspace.open(path)
            name = self._free(Path(path).absolute().name)
            self.workspaces[name] = Opened(name, opened)

    def _free(self, folder: str) -> str:
        """A name for a folder that stands in an address as it is, and that no other one has."""
        name = address_name(folder)
        taken = (f"{name}-{n}" for n in range(2, len(self.workspaces) + 3))
        return name if name not in self.workspaces else next(each for each in taken if each not in self.workspaces)

    def find(self, name: str) -> Opened:
        """The workspace that is served under a name.

        Raises:
            UnknownRef: none has that name.
        """
        if name not in self.workspaces:
            raise UnknownRef(f"No workspace is served as {name!r:.80}.", f"Served: {', '.join(self.workspaces)}.")
        return self.workspaces[name]

    def close(self) -> None:
        """End the model worker, and close all databases."""
        self.worker.close()
        for each in self.workspaces.values():
            each.close()


def served(request: Request) -> Served:
    """What the application has open."""
    found: Served = request.app.state.served
    return found


def opened(ws: str, everything: Annotated[Served, Depends(served)]) -> Opened:
    """The workspace that the address names."""
    return everything.find(ws)


def may_write(everything: Annotated[Served, Depends(served)]) -> None:
    """Refuse a request that writes, where the server is read-only."""
    if everything.settings.read_only:
        raise HTTPException(403, "This server is read-only: it was started with --read-only.")


ServedHere = Annotated[Served, Depends(served)]
OpenedHere = Annotated[Opened, Depends(opened)]
WRITES = Depends(may_write)
"""A dependency of every route that writes: `dependencies=[WRITES]`."""
