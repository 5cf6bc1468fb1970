"""Putting a folder that holds an SAE on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from saekit.errors import ConfigError, PushError
from saekit.hub import Repository, offline

CARD = "README.md"
_LOGIN = "Log in with a token that may write: `hf auth login`."


@dataclass(frozen=True)
class Target:
    """Where a dictionary goes on the hub.

    Attributes:
        repository: owner/name. It is made if it does not exist.
        path: the folder in it; sae-lens calls it the SAE's id.
        revision: the branch, which is made if it does not exist; None: main.
        private: make the repository private, and refuse one that is public.

    Raises:
        ConfigError: a name or the path is impossible.
    """

    repository: str
    path: str
    revision: str | None = None
    private: bool = False

    def __post_init__(self) -> None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.repository)
        except HFValidationError as error:
            raise ConfigError(f"{self.repository!r} cannot be the name of a repository.", "Write OWNER/NAME.") from error
        if self.repository.count("/") != 1:
            raise ConfigError(f"{self.repository!r} does not say whose repository it is.", "Write OWNER/NAME.")
        path = PurePosixPath(self.path)
        if not path.parts or path.is_absolute() or ".." in path.parts or self.path != str(path):
            raise ConfigError(f"{self.path!r} is no folder in a repository.", "Write it like resid_post.3 or gpt2/resid_post.3.")

    @property
    def source(self) -> str:
        """What :meth:`saekit.sae.SAE.load` takes."""
        return f"{self.repository}/{self.path}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Pushed:
    """What was put on the hub.

    Attributes:
        target: with the owner of the repository.
        address: of the folder, for a browser.
        commit: that holds it.
        kept_card: whether the repository had a model card, which stays as it was.
    """

    target: Target
    address: str
    commit: str
    kept_card: bool


def upload(folder: Path, target: Target, message: str) -> Pushed:
    """Upload a folder in one commit, through huggingface_hub. Files of the repository that the folder lacks stay as they are.

    Args:
        folder: its content goes to the root of the repository. A model card at its root is left out where the repository has one.
        target: where to.
        message: of the commit.

    Raises:
        PushError: nobody is logged in, the token may not write there, the repository is public and was to be private, or the hub
            cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    if (variable := offline()) is not None:
        raise PushError(f"{variable} is set, so that nothing is sent to the hub.", f"Unset {variable}, or use --folder FOLDER.")
    if get_token() is None:
        raise PushError("Nobody is logged in to the hub.", _LOGIN)
    api = HfApi()
    with _explaining(target):
        made = api.create_repo(target.repository, private=target.private or None, exist_ok=True)
        target = replace(target, repository=made.repo_id)
        if target.private and api.repo_info(target.repository).private is False:
            raise PushError(f"{target.repository} is public.", "Leave --private out, or choose another repository.")
        if target.revision is not None:
            api.create_branch(target.repository, branch=target.revision, exist_ok=True)
        kept = api.file_exists(target.repository, CARD, revision=target.revision)
        commit = api.upload_folder(
            repo_id=target.repository,
            folder_path=folder,
            revision=target.revision,
            commit_message=message,
            ignore_patterns=[CARD] if kept else None,
        )
    branch = target.revision or "main"
    address = f"{Repository(target.repository).address}/tree/{branch}/{target.path}"
    return Pushed(target, address, commit.oid, kept)


@contextmanager
def _explaining(target: Target) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except PushError:
        raise
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", 0) if isinstance(error, HfHubHTTPError) else 0
        raise _problem(error, status, target) from error


def _problem(error: Exception, status: Any, target: Target) -> PushError:
    name = target.repository
    if status == 401:
        return PushError(f"The hub does not accept the token (401), asked for {name}.", _LOGIN)
    if status in (403, 404):
        return PushError(f"The token may not write to {name} on the hub ({status}).", f"Check the owner's name. {_LOGIN}")
    found = Repository(name, "model", target.revision, "repository").explain(error)
    if found is not None:
        return PushError(found.what, found.hint)
    reason = " ".join(str(error).split())[:300]
    return PushError(f"{name} could not be written on the hub: {type(error).__name__}: {reason}.", "Run the same command again.")
