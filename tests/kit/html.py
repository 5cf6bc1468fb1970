"""A parser of pages."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "br", "hr", "img", "input", "link"}
LOADING = ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background", "formaction")


class Page(HTMLParser):
    """Checks that every tag is closed, in order."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        raise AssertionError(f"<{tag}/> is not closed in HTML")

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-3:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self._open):
            self.text.append(data)

    @property
    def all_text(self) -> str:
        """All text that is shown."""
        return "".join(self.text)

    @property
    def charts(self) -> list[dict[str, Any]]:
        """The charts, as plotly is given them."""
        return [json.loads(attributes["data-chart"]) for _, attributes in self.tags if "data-chart" in attributes]

    def of_class(self, name: str) -> list[dict[str, str]]:
        """Attributes of the elements with a class."""
        return [attributes for _, attributes in self.tags if name in attributes.get("class", "").split()]


def check(source: str) -> Page:
    """Parse a page, and assert that it is well formed and loads nothing. It runs no script but the one that draws its charts."""
    page = Page(source)
    names = {tag for tag, _ in page.tags}
    _check_scripts(page, source)
    assert not names & {"link", "img", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        names = set(attributes)
        if tag == "a":  # to a page in the same folder
            assert re.fullmatch(r"[\w.,=+-]+", attributes["href"]), attributes
            names.remove("href")
        assert not [name for name in names if name in LOADING or name.startswith("on")], (tag, attributes)
    (style,) = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    assert "url(" not in style and "@import" not in style
    assert "Content-Security-Policy" in source
    return page


def _check_scripts(page: Page, source: str) -> None:
    """A page without charts has no script, and none may run. One with charts has plotly, packed, and the code that draws."""
    kinds = [attributes.get("type") for tag, attributes in page.tags if tag == "script"]
    assert kinds == (["text/plain", None] if page.charts else [])
    (policy,) = (each["content"] for _, each in page.tags if each.get("http-equiv") == "Content-Security-Policy")
    allowed = policy.partition("script-src")[2].split()
    assert policy.startswith("default-src 'none'") and len(allowed) == (2 if page.charts else 0)
    if page.charts:
        own = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
        assert len(own) == 1
        assert allowed[0] == f"'sha256-{base64.b64encode(hashlib.sha256(own[0].encode()).digest()).decode()}'"
