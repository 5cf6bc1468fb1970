"""A stand-in of the Hugging Face hub on loopback: repositories by name, with revisions, uploads, and faults on demand.

huggingface_hub, transformers, datasets and sae-lens use it where `HF_ENDPOINT` names it, which they read when they are imported:
run them in a process of its own, with :meth:`Hub.environment`::

    with Hub() as hub:
        hub.add("models", "someone/stories", folder)
        hub.fault("/resolve/", "503", count=1)
        subprocess.run([...], env=hub.environment(tmp_path))
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Self

from tests.kit.hub_requests import Files, Handler

Kind = Literal["models", "datasets"]
Action = Literal["503", "500", "429", "401", "403", "404", "hang", "reset", "truncate", "slow"]


@dataclass
class Repository:
    """One repository: its commits, the oldest first, and its branches."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def resolve(self, revision: str) -> str | None:
        if revision in self.branches:
            return self.branches[revision]
        return next((sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)), None)


@dataclass
class Fault:
    """What happens to requests whose path matches a pattern."""

    pattern: str
    action: Action
    count: int | None = None
    skip: int = 0
    method: str = ""
    seconds: float = 60.0
    """Of a hang, and before each piece where the answer is slow."""
    share: float = 0.5
    """Of a truncated file that is sent."""

    def applies(self, method: str, path: str) -> bool:
        if not re.search(self.pattern, path) or self.method not in ("", method) or self.count == 0:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.count = None if self.count is None else self.count - 1
        return True


class Hub:
    """The server, which runs while the object is used as a context manager.

    Attributes:
        log: "METHOD path" of every request, with " -> ACTION" where a fault applied.
        repositories: by kind and name.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.blobs: dict[str, bytes] = {}  # large files that were uploaded, by hash
        self.lock = threading.Lock()

    def __enter__(self) -> Self:
        handler = type("Handler", (Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """The environment of a process that uses this hub, with a cache of its own in the folder `home`, and short timeouts."""
        own = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_ETAG_TIMEOUT": "2",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "XDG_CONFIG_HOME": str(home / "config"),
        }
        return {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | own | more

    def add(self, kind: Kind, name: str, content: Path | Files, *, branch: str = "main", gated: bool = False) -> str:
        """Add a commit, and move the branch to it; returns the commit's hash.

        Args:
            kind: of repository.
            name: owner/name.
            content: all files of the commit, by path; or a folder.
            branch: which moves.
            gated: whether the terms must be accepted first, which nobody has done.
        """
        if isinstance(content, Path):
            files = {path.relative_to(content).as_posix(): path.read_bytes() for path in content.rglob("*") if path.is_file()}
        else:
            files = dict(content)
        with self.lock:
            repository = self.repositories.setdefault((kind, name), Repository())
            repository.gated = gated
            digests = sorted((path, hashlib.sha256(data).hexdigest()) for path, data in files.items())
            facts = [kind, name, len(repository.commits), digests]
            sha = hashlib.sha1(json.dumps(facts).encode()).hexdigest()
            repository.commits[sha] = files
            repository.branches[branch] = sha
            repository.branches.setdefault("main", sha)
        return sha

    def files(self, kind: Kind, name: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a repository, as uploads left them."""
        repository = self.repositories[kind, name]
        return repository.commits[repository.resolve(revision) or ""]

    def fault(self, pattern: str, action: Action, **settings: Any) -> None:
        """Let requests whose path matches a pattern fail; settings are those of :class:`Fault`."""
        with self.lock:
            self.faults.append(Fault(pattern, action, **settings))

    def heal(self) -> None:
        """Remove all faults, and forget the requests so far."""
        with self.lock:
            self.faults.clear()
            self.log.clear()

    def answer(self, method: str, path: str) -> Fault | None:
        with self.lock:
            found = next((each for each in self.faults if each.applies(method, path)), None)
            self.log.append(f"{method} {path}" + (f" -> {found.action}" if found else ""))
            return found
