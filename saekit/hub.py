"""The Hugging Face hub: which commit a repository is at, and its errors in plain words.

This is the one place that translates errors of huggingface_hub. Libraries wrap them in errors of their own, so the whole chain of
causes is searched.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from saekit.errors import SaekitError

_TRIES, _PAUSES = 4, 7.0  # pauses of 1, 2 and 4 seconds between the tries
_RATE_LIMIT = 60.0  # seconds that the hub may ask to wait for
_AGAIN = "Run the same command again."
_ONLINE = "Check the network, or run the command once where the hub can be reached."
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_STATUS = {
    401: ("The hub refuses the token", "Log in again: `hf auth login`."),
    403: ("The hub forbids access", "Log in with a token that may read the repository: `hf auth login`."),
    429: ("The hub refuses further requests for now: there were too many", "Wait a few minutes. " + _AGAIN),
}


class Problem(NamedTuple):
    """What went wrong on the hub, in words."""

    what: str
    hint: str
    unreachable: bool = False
    """Whether the hub was not asked or gave no answer, so that a cached copy may be used."""

    def error(self, kind: type[SaekitError]) -> SaekitError:
        """An error of that class with these words."""
        return kind(self.what, self.hint)


@dataclass(frozen=True)
class Repository:
    """A repository on the hub, as a user names it.

    Attributes:
        name: owner/name.
        kind: of repository.
        revision: branch, tag or commit; None: the newest.
        noun: what messages call its content.
    """

    name: str
    kind: Literal["model", "dataset"] = "model"
    revision: str | None = None
    noun: str = "model"

    @property
    def address(self) -> str:
        """Its page."""
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    def commit(self, *, patient: bool = True) -> str | Problem:
        """The commit that the revision points to, or why the hub does not say.

        Server errors, rate limits and timeouts are tried again, for a minute or two at most.

        Args:
            patient: False asks once, for callers that have something else to fall back to.
        """
        from huggingface_hub import constants

        answer: list[str | Problem] = []
        tries, seconds = _TRIES if patient else 1, float(constants.HF_HUB_ETAG_TIMEOUT)

        def ask() -> None:
            try:
                answer.append(self._ask(tries - 1, seconds))
            except Exception as error:
                answer.append(self.explain(error) or Problem(f"The hub cannot be asked for {self.name}: {error}.", _ONLINE, True))

        # In a thread of its own, because the resolution of host names has no timeout.
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(tries * seconds + (_PAUSES + _RATE_LIMIT if patient else 0.0))
        return answer[0] if answer else self._silent()

    def _ask(self, retries: int, seconds: float) -> str:
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

        part = "" if self.revision is None else f"/revision/{quote(self.revision, safe='')}"
        url = f"{constants.ENDPOINT}/api/{self.kind}s/{self.name}{part}"
        response = http_backoff("GET", url, headers=build_hf_headers(), timeout=seconds, max_retries=retries)
        hf_raise_for_status(response)
        return str(response.json()["sha"])

    def explain(self, error: BaseException) -> Problem | None:
        """What a hub error in the chain of causes of `error` means for this repository, or None without such an error."""
        from huggingface_hub import errors

        chain = list(_chain(error))
        rules: list[tuple[type[BaseException], Callable[[Any], Problem]]] = [
            (errors.GatedRepoError, self.gated),
            (errors.RevisionNotFoundError, self._no_revision),
            (errors.RepositoryNotFoundError, self._missing),
            (errors.OfflineModeIsEnabled, self._offline),
            (errors.HfHubHTTPError, self._status),
        ]
        for kind, rule in rules:
            for each in chain:
                if isinstance(each, kind) and not isinstance(each, errors.EntryNotFoundError):
                    return rule(each)
        for each in chain:
            # HTTP clients have one class for a body that is cut short and for a server that does not answer.
            if "Consistency check failed" in str(each) or "complete message body" in str(each):
                return Problem(f"The download of {self.name} broke off.", f"{_AGAIN} What arrived is not used.")
            if _is_timeout(each):
                return self._silent()
            if _is_connection(each):
                return self._cut_off()
        if any(isinstance(each, errors.LocalEntryNotFoundError) for each in chain):
            return self._offline() if offline() else self._cut_off()
        # Libraries look for files that need not exist, so that only one that was itself the cause counts.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, errors.EntryNotFoundError):
            cause = cause.__cause__
        return None if cause is None else self._no_file(cause)

    def gated(self, _: Any = None) -> Problem:
        """What it means that the terms of the repository must be accepted first."""
        return Problem(
            f"The {self.noun} {self.name} is gated on the hub.",
            f"Accept the terms at {self.address} and log in: `hf auth login`.",
        )

    def _missing(self, _: Any = None) -> Problem:
        return Problem(
            f"{self.name} is neither a path on this machine nor a {self.noun} on the hub that you can read.",
            f"Check the name at {self.address}; if it is private, log in: `hf auth login`.",
        )

    def _no_revision(self, _: Any = None) -> Problem:
        return Problem(
            f"The {self.noun} {self.name} has no revision {self.revision!r} on the hub.", f"See its branches at {self.address}."
        )

    def _no_file(self, error: Any) -> Problem:
        url = str(getattr(getattr(error, "response", None), "url", ""))
        file = url.split("/resolve/")[-1].partition("/")[2].partition("?")[0] or "file of that name"
        return Problem(f"{self.name} holds no {file} on the hub.", f"See its files at {self.address}/tree/main.")

    def _status(self, error: Any) -> Problem:
        code = getattr(error.response, "status_code", 0)
        if code in _STATUS:
            what, hint = _STATUS[code]
            return Problem(f"{what} ({code}), asked for {self.name}.", hint, code == 429)
        return Problem(f"The hub answers with an error ({code}), asked for {self.name}.", f"Wait a little. {_AGAIN}", code >= 500)

    def _offline(self, _: Any = None) -> Problem:
        variable = offline() or _OFFLINE[0]
        return Problem(
            f"{self.name} is not in the cache, and {variable} is set, so that nothing is downloaded.",
            f"Unset {variable}, or give a local folder.",
            True,
        )

    def _silent(self) -> Problem:
        return Problem(f"The hub does not answer, asked for {self.name}.", _ONLINE, True)

    def _cut_off(self) -> Problem:
        return Problem(f"The hub cannot be reached, asked for {self.name}.", _ONLINE, True)


def offline() -> str | None:
    """The environment variable that forbids to use the hub; None if it may be used."""
    from huggingface_hub import constants

    named = next((name for name in _OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), None)
    return named or (_OFFLINE[0] if constants.HF_HUB_OFFLINE else None)


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a whole commit hash, which names the same content for ever."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its causes, and the errors in whose handling these arose."""
    seen: set[int] = set()
    todo = [error]
    while todo:
        each = todo.pop(0)
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            todo += [each.__cause__, each.__context__]


def _is_timeout(error: BaseException) -> bool:
    return isinstance(error, TimeoutError) or _named(error, "TimeoutException", "Timeout")


def _is_connection(error: BaseException) -> bool:
    return isinstance(error, ConnectionError) or _named(error, "NetworkError", "ProtocolError", "ConnectionError")


def _named(error: BaseException, *names: str) -> bool:
    """Whether an error is of a class of that name: the HTTP client of huggingface_hub differs between its versions."""
    return any(kind.__name__ in names for kind in type(error).__mro__)
