"""A real browser that opens pages as a person does, and says what is wrong with them.

It is Debian's chromium, or another one that ``SAEKIT_CHROMIUM`` names, or the one that playwright has downloaded. Tests that need
it are skipped where there is none.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

WIDTHS = (1280, 400)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_LOCAL = ("", "blob", "data", "file", "about")
_ARTEFACTS = "SAEKIT_ARTEFACTS"
_SERIOUS = ("serious", "critical")
_OVERFLOW = """() => {
  const wide = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= wide) return "";
  const clipped = (element) => element.closest(".scroll, .beside, pre, .chart");
  const found = [...document.querySelectorAll("body *")].filter((e) => !clipped(e) && e.getBoundingClientRect().right > wide + 1);
  return `${document.documentElement.scrollWidth} of ${wide} px: ${found.slice(0, 3).map((e) => e.outerHTML.slice(0, 90))}`;
}"""


def chromium_path() -> str | None:
    """The program of a browser on this machine; None where playwright's own is used, if there is one."""
    found = [os.environ.get("SAEKIT_CHROMIUM"), *map(shutil.which, _NAMES)]
    return next((each for each in found if each), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser for the block; the test is skipped where there is none. One at a time: playwright allows no second one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
    with playwright.sync_playwright() as started:
        program = chromium_path()
        if program is None and not Path(started.chromium.executable_path).exists():
            pytest.skip("needs a browser: apt-get install chromium, or SAEKIT_CHROMIUM")
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page of a browser, and everything that went wrong in it.

    Args:
        page: of the browser.
        own: beginning of the addresses that it may ask: the server's, or empty for files.

    Attributes:
        faults: messages on the console, errors of scripts, and requests to others.
    """

    def __init__(self, page: Page, own: str = "") -> None:
        self.page, self._own = page, own
        self.faults: list[str] = []
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.faults.append(f"{page.url}: {error}"))
        page.on("request", self._asked)

    def _said(self, message: ConsoleMessage) -> None:
        self.faults.append(f"{self.page.url}: {message.text}")

    def _asked(self, request: Request) -> None:
        own = bool(self._own) and request.url.startswith(f"{self._own}/")
        if not own and urlsplit(request.url).scheme not in _LOCAL:
            self.faults.append(f"{self.page.url} asks for {request.url}")

    def resize(self, width: int) -> None:
        """Give the window another width, and wait until charts have it, too."""
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.evaluate(
            "() => Promise.all([...document.querySelectorAll('.js-plotly-plot')].map((c) => Plotly.Plots.resize(c)))"
        )

    def overflow(self) -> str:
        """What makes the page wider than the window; empty if nothing does."""
        said: str = self.page.evaluate(_OVERFLOW)
        return said

    def shift(self) -> float:
        """How far the parts of the page have moved since it was opened, as the field's score of layout shift has it."""
        found: float = self.page.evaluate(
            "() => new Promise((done) => { let sum = 0; new PerformanceObserver((all) => { for (const each of all.getEntries())"
            " if (!each.hadRecentInput) sum += each.value; }).observe({ type: 'layout-shift', buffered: true });"
            " setTimeout(() => done(sum), 60); })"
        )
        return found

    def barriers(self) -> list[str]:
        """What axe-core finds that keeps people out: faults that it calls serious or critical."""
        axe = pytest.importorskip("axe_playwright_python.base", reason="needs axe-core: pip install -e '.[dev]'")
        self.page.evaluate(axe.AXE_SCRIPT)  # by the driver: the page's policy stays as it is
        found: dict[str, Any] = self.page.evaluate("() => axe.run({ resultTypes: ['violations'], preload: false })")
        return [
            f"{self.page.url}: {each['id']} ({each['impact']}): " + " ".join(str(node["html"]) for node in each["nodes"][:3])
            for each in found["violations"]
            if each["impact"] in _SERIOUS
        ]


def artefacts(folder: Path) -> Path:
    """Where screenshots are kept: in ``SAEKIT_ARTEFACTS``, or a folder of the test run."""
    found = Path(os.environ.get(_ARTEFACTS, folder))
    found.mkdir(parents=True, exist_ok=True)
    return found
