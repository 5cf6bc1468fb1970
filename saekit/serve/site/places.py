"""Where each page of a copy is, and links between them that need no server."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from markupsafe import escape

INDEX = "index.html"
_ATTRIBUTE = re.compile(r' (href|src|action)="([^"]*)"')
"""Texts in a page cannot look like this: the templates escape every quotation mark."""
_LINKS = ("url", "previous", "next", "tabs", "sorts")
"""Fields of views that hold addresses."""


def canonical(url: str, usual: Mapping[str, str] = {}) -> str:
    """One spelling of an address of the server: unquoted path, fields in order, without those that have their usual value."""
    parts = urlsplit(url)
    fields = sorted((name, value) for name, value in parse_qsl(parts.query) if usual.get(name) != value and name != "v")
    path = unquote(parts.path).rstrip("/") or "/"
    return f"{path}?{urlencode(fields)}" if fields else path


class Places:
    """The files of a copy.

    Args:
        files: address of each page at the server -> its file in the copy.
        usual: fields of addresses, and the values that mean the same as leaving them out.

    Attributes:
        linked: files that a page links to.
    """

    def __init__(self, files: Mapping[str, str], usual: Mapping[str, str]) -> None:
        self._usual = usual
        self.linked: set[str] = set()
        self._files = {canonical(url, usual): file for url, file in files.items()}

    def file(self, url: str) -> str | None:
        """The file that has the page of an address; None if the copy lacks it."""
        if urlsplit(url).netloc or urlsplit(url).scheme:
            return None
        return self._files.get(canonical(url, self._usual))

    def link(self, url: str, page: str) -> str | None:
        """The relative address of a page, as seen from the file `page`; None if the copy lacks it."""
        file = self.file(url)
        if file is None:
            return None
        self.linked.add(file)
        fragment = urlsplit(url).fragment
        return quote(posixpath.relpath(file, posixpath.dirname(page) or "."), safe="/=,+@-") + (
            f"#{fragment}" if fragment else ""
        )

    def html(self, text: str, page: str) -> str:
        """A page whose links are relative. A link to what the copy lacks becomes plain text."""

        def link(match: re.Match[str]) -> str:
            name, value = match.groups()
            if value.startswith("#") or not value.startswith(("/", "?")):
                return match.group()  # made relative already
            found = self.link(_plain(value), page)
            return "" if found is None else f' {name}="{escape(found)}"'

        return _ATTRIBUTE.sub(link, text)

    def view(self, data: Any, page: str, *, charts_only: bool = False) -> Any:
        """A view whose addresses are relative, also those that points of its charts open; None for what the copy lacks.

        Args:
            charts_only: leave the addresses outside of charts for :meth:`html`, which sees them in the page.
        """
        if isinstance(data, list):
            return [self.view(each, page, charts_only=charts_only) for each in data]
        if not isinstance(data, dict):
            return data
        if data.get("meta") == {"links": True}:
            points = [[self.link(link, page) or "", *rest] for link, *rest in data["customdata"]]
            return {**data, "customdata": points}
        return {
            name: _mapped(value, lambda url: self.link(url, page))
            if name in _LINKS and not charts_only
            else self.view(value, page, charts_only=charts_only)
            for name, value in data.items()
        }


def _mapped(value: Any, link: Callable[[str], str | None]) -> Any:
    """Addresses in a field: one, or some by name. Other values stay."""
    if isinstance(value, dict):
        return {name: _mapped(each, link) for name, each in value.items()}
    return link(value) if isinstance(value, str) and value.startswith("/") else value


def _plain(text: str) -> str:
    """An attribute as it was before the template escaped it."""
    return text.replace("&amp;", "&").replace("&#39;", "'").replace("&#34;", '"').replace("&lt;", "<").replace("&gt;", ">")
