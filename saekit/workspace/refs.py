"""The features that a user means: single ones, ranges, and lists. Every command reads them here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from saekit.errors import ConfigError, UnknownRef
from saekit.names.ref import Ref

if TYPE_CHECKING:
    from saekit.workspace.folder import WorkspaceFolder

LIST = "@"
"""Stands before the name of a list."""
_RANKED = re.compile(r"@rankings/(?P<name>[^/]+)(?:/(?P<k>[0-9]{1,6}))?")
TOP = 10
"""Objects of a ranking that are meant where no number is given."""
_RANGE = re.compile(r"(?P<place>(?:.+/)?)(?P<first>[0-9]{1,9})(?:-|\.\.)(?P<last>[0-9]{1,9})")
_LIST_NAME = re.compile(r"[\w.-]{1,100}")
_MOST = 1 << 20


def parse(ws: WorkspaceFolder, texts: str | Iterable[str], name: str = "", within: str | None = None) -> list[Ref]:
    """The features of several texts, each once, in the order given; see :meth:`WorkspaceFolder.refs`."""
    found: dict[Ref, None] = {}
    for text in [texts] if isinstance(texts, str) else texts:
        for part in text.split(","):
            found.update(dict.fromkeys(_of_one(ws, part.strip(), name, within)))
    return list(found)


def is_single(text: str) -> bool:
    """Whether a text means one feature, not a list, a range or several."""
    return not (text.startswith(LIST) or "," in text or _RANGE.fullmatch(text))


def _of_one(ws: WorkspaceFolder, text: str, name: str, within: str | None) -> Iterable[Ref]:
    if ranked := _RANKED.fullmatch(text):
        return _of_ranking(ws, ranked["name"], int(ranked["k"] or TOP))
    if text.startswith(LIST):
        with ws.database() as database:
            return [entry.ref for entry in database.list_entries(text.removeprefix(LIST))]
    if within is not None and text[:1].isdecimal():
        text = f"{within}/{text}"
    span = _RANGE.fullmatch(text)
    if span is None:
        return [ws.ref(text, name)]
    first, last = int(span["first"]), int(span["last"])
    if not 0 <= last - first < _MOST:
        raise UnknownRef(f"{text!r} is no range of features.", "Write the first and the last one: 0-99.")
    of_first = ws.ref(f"{span['place']}{first}", name)
    return [replace(of_first, unit=unit) for unit in range(first, last + 1)]


def _of_ranking(ws: WorkspaceFolder, name: str, k: int) -> list[Ref]:
    """The first `k` objects of a kept ranking, which must be features."""
    from saekit.workspace import rankings

    found: list[Ref] = []
    for ref in rankings.read(ws, name).top(k):
        if not isinstance(ref, Ref) or ref.kind != "feature":
            raise UnknownRef(
                f"{ref} of the ranking {name!r} is no feature.",
                "In Python, saekit.steer takes all objects: ablate(ws.ranking(name).top(k)).",
            )
        found.append(ref.at(None))
    return list(dict.fromkeys(found))


def check_list_name(name: str) -> str:
    """The name of a list without a leading @.

    Raises:
        ConfigError: it has characters that a ref cannot have.
    """
    bare = name.removeprefix(LIST)
    if not _LIST_NAME.fullmatch(bare):
        hint = "Use letters, digits, dots, dashes and underscores: safety, my-list."
        raise ConfigError(f"{name!r:.60} is no name of a list.", hint)
    return bare
