"""One commit of a repository on the hub, or what the cache has of it."""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from saekit.errors import SAENotFound
from saekit.hub import Problem, Repository
from saekit.sae.foreign.place import NoSuchFile, Place


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit, whose files are downloaded when they are asked for.

    Where the hub cannot be reached, files come from the cache, at the commit that the cache has for the revision.

    Attributes:
        repository: with the revision that the user wants.
        commit: of all files; None where neither hub nor cache knows it.
        problem: why the hub does not answer, where it does not.
    """

    repository: Repository
    commit: str | None
    problem: Problem | None = field(default=None, compare=False)

    @classmethod
    def of(cls, name: str, revision: str | None) -> Snapshot:
        """The newest commit of the revision.

        Raises:
            SAENotFound: there is no such repository or revision, or it must not be read.
        """
        repository = Repository(name, "model", revision, "SAE repository")
        cached = _cached_commit(name, revision)
        found = repository.commit(patient=cached is None)
        if isinstance(found, str):
            return cls(repository, found)
        if not found.unreachable:
            raise found.error(SAENotFound)
        return cls(repository, cached, found)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All files of the repository, or those in the cache where the hub cannot be reached."""
        from huggingface_hub import HfApi

        if self.problem is None:
            return tuple(HfApi().list_repo_files(self.repository.name, revision=self.commit))
        folder = None if self.commit is None else _cache(self.repository.name) / "snapshots" / self.commit
        if folder is None or not folder.is_dir():
            raise self.problem.error(SAENotFound)
        return tuple(path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())

    def get(self, name: str) -> Path:
        """The path on disk of a file, by its name in the repository.

        Raises:
            NoSuchFile: the repository has no such file.
        """
        from huggingface_hub import hf_hub_download

        name = posixpath.normpath(name)
        if self.problem is None and name not in self.names:
            raise NoSuchFile(name)
        local = self.problem is not None
        return Path(hf_hub_download(self.repository.name, name, revision=self.commit, local_files_only=local))

    def place(self, path: str) -> Place:
        """A folder or file in the repository; "" and "." are its root.

        Raises:
            SAENotFound: there is no such folder or file.
        """
        path = "" if path in ("", ".") else posixpath.normpath(path.strip("/"))
        folder, entry = (posixpath.dirname(path), posixpath.basename(path)) if path in self.names else (path, None)
        start = f"{folder}/" if folder else ""
        below = tuple(name.removeprefix(start) for name in self.names if name.startswith(start))
        if not below:
            if self.problem is not None:
                raise self.problem.error(SAENotFound)
            folders = sorted({posixpath.dirname(name) for name in self.names} - {""})
            near = difflib.get_close_matches(path, folders, n=3, cutoff=0.4) or folders[:3]
            hint = f"Did you mean {' or '.join(near)}?" if near else f"See its files at {self.repository.address}/tree/main."
            raise SAENotFound(f"{self.repository.name} has no folder or file {path!r} on the hub.", hint)
        shown = posixpath.join(self.repository.name, folder)
        return Place(
            shown, below, lambda name: self.get(posixpath.join(folder, name)), entry, self.repository.name, folder, self.commit
        )

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Turn errors of huggingface_hub into a SAENotFound with words of :meth:`saekit.hub.Repository.explain`."""
        try:
            yield
        except NoSuchFile as error:
            raise SAENotFound(
                f"{self.repository.name} holds no {error} on the hub.", f"See its files at {self.repository.address}/tree/main."
            ) from error
        except Exception as error:
            problem = self.repository.explain(error)
            if problem is None:
                raise
            raise problem.error(SAENotFound) from error


def _cache(name: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")


def _cached_commit(name: str, revision: str | None) -> str | None:
    """The commit that the cache has for a revision."""
    reference = _cache(name) / "refs" / (revision or "main")
    if reference.is_file():
        return reference.read_text().strip()
    return revision if revision is not None and (_cache(name) / "snapshots" / revision).is_dir() else None
