"""The features that a user means: single ones, ranges, and lists."""

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
_RANGE = re.compile(r"(?P<place>.*?)(?P<first>[0-9]{1,9})\.\.(?P<last>[0-9]{1,9})")
_LIST_NAME = re.compile(r"[\w.-]{1,100}")
_MOST = 1 << 20


def parse(ws: WorkspaceFolder, texts: str | Iterable[str], name: str = "") -> list[Ref]:
    """The features of several texts, each once, in the order given; see :meth:`WorkspaceFolder.refs`."""
    found: dict[Ref, None] = {}
    for text in [texts] if isinstance(texts, str) else texts:
        found.update(dict.fromkeys(_of_one(ws, text, name)))
    return list(found)


def _of_one(ws: WorkspaceFolder, text: str, name: str) -> Iterable[Ref]:
    if text.startswith(LIST):
        with ws.database() as database:
            return [entry.ref for entry in database.list_entries(text.removeprefix(LIST))]
    span = _RANGE.fullmatch(text)
    if span is None or (span["place"] and not span["place"].endswith("/")):
        return [ws.ref(text, name)]
    first, last = int(span["first"]), int(span["last"])
    if not 0 <= last - first < _MOST:
        raise UnknownRef(f"{text!r} is no range of features.", "Write the first and the last one: 0..99.")
    of_first = ws.ref(f"{span['place']}{first}", name)
    return [replace(of_first, unit=unit) for unit in range(first, last + 1)]


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
