"""Links between pages that lie beside each other."""

from __future__ import annotations

from urllib.parse import quote


def link(file: str) -> str:
    """The relative address of a file beside a page. It names no scheme and no other folder, whatever the file is called."""
    return quote(file, safe="=,+")
