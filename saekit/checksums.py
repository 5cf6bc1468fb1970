"""JSON files that carry a checksum of themselves, so that a change of any byte is found when they are read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from saekit.errors import SaekitError
from saekit.json_files import read_json

FIELD = "checksum"
"""Name of the entry that holds the checksum. It is the last entry of the file."""
_ENTRY = re.compile(rb'"checksum": "([0-9a-f]{64})"\s*\}\s*\Z')
_BLANK = b"0" * 64


def seal(fields: Mapping[str, Any], *, indent: int | None = 1) -> bytes:
    """Encode `fields` as JSON that ends with the SHA-256 of the whole file, computed with 64 zeros in place of the checksum."""
    blank = {**fields, FIELD: _BLANK.decode()}
    data = (json.dumps(blank, indent=indent, ensure_ascii=False) + "\n").encode("utf-8", "replace")
    head, _, tail = data.rpartition(_BLANK)
    return head + hashlib.sha256(data).hexdigest().encode() + tail


def seal_problem(data: bytes, fields: Mapping[str, Any], known: Collection[str]) -> str:
    """Say why the content of a file is not what :func:`seal` wrote; "" where it is.

    Args:
        data: the content of the file.
        fields: the same, decoded. Without a checksum, as in files of earlier versions, only the names of the entries are checked.
        known: entries that the file may have. Others are refused because a change within the word "checksum" makes one.
    """
    if unknown := sorted(fields.keys() - {*known, FIELD}):
        return f"it has an unknown entry {unknown[0]!r}"
    if FIELD not in fields:
        return ""
    match = _ENTRY.search(data)
    if match is None:
        return "its checksum cannot be read"
    digest = hashlib.sha256(data[: match.start(1)] + _BLANK + data[match.end(1) :]).hexdigest()
    return "" if digest == match[1].decode() else "its content does not match its checksum"


def read_sealed(
    path: Path, known: Collection[str], *, error: type[SaekitError], hint: str, finite: bool = True
) -> dict[str, Any]:
    """Read a JSON file that :func:`seal` made, or that an earlier version wrote without a checksum.

    Args:
        path: the file.
        known: entries that it may have.
        error: type of the error raised.
        hint: what to do about it.
        finite: whether NaN and infinities are refused.

    Raises:
        error: the file cannot be read, is not a JSON object, has an unknown entry, or has changed since it was written.
    """
    fields: dict[str, Any] = read_json(path, error=error, hint=hint, finite=finite)
    if problem := seal_problem(path.read_bytes(), fields, known):
        raise error(f"{path} is damaged: {problem}.", hint)
    fields.pop(FIELD, None)
    return fields
