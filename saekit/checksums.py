"""JSON files that carry a checksum of themselves, so that a change of any byte is found when they are read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

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


def unseal(data: bytes, known: Collection[str]) -> dict[str, Any]:
    """Decode what :func:`seal` made. A file of an earlier version, which has no checksum, is decoded without this check.

    Args:
        data: the content of the file.
        known: entries that the file may have.

    Raises:
        ValueError: the content is not a JSON object, has an unknown entry, or does not match its checksum. An unknown entry is
            refused because a change within the word "checksum" makes one.
    """
    fields = parse_object(data)
    if unknown := sorted(fields.keys() - {*known, FIELD}):
        raise ValueError(f"it has an unknown entry {unknown[0]!r}")
    if FIELD not in fields:
        return fields
    match = _ENTRY.search(data)
    if match is None:
        raise ValueError("its checksum cannot be read")
    digest = hashlib.sha256(data[: match.start(1)] + _BLANK + data[match.end(1) :]).hexdigest()
    if digest != match[1].decode():
        raise ValueError("its content does not match its checksum")
    del fields[FIELD]
    return fields


def parse_object(data: bytes | str) -> dict[str, Any]:
    """Decode a JSON object.

    Raises:
        ValueError: the content is not JSON, is nested too deeply, or is not an object.
    """
    try:
        fields = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError(f"it holds a {type(fields).__name__}, not an object")
    return fields
