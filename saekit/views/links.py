"""Links between pages in one folder."""

from __future__ import annotations

from urllib.parse import quote


def link(file: str) -> str:
    """The relative address of a file in the folder of a page. It contains no scheme and no other folder, for any file name."""
    return quote(file, safe="=,+")
