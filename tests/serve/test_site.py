"""A copy of the pages in files: it opens from a disk in a real browser, its links lead to files, and it is whole or not there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest

from saekit.errors import ConfigError, SaekitError
from saekit.names.ref import Ref
from saekit.serve.site import pages as site_pages
from saekit.serve.site.places import Places
from saekit.serve.site.write import write_site
from saekit.tasks import Ranking
from saekit.workspace.workspace import Workspace
from tests.kit import browser as kit
from tests.kit.commands import Saekit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SITE = "resid_post.2"
SCRIPT = "<script>document.title = 1</script>\"'><img src=x onerror=alert(2)> /w/study/features"
CLICK = """() => {
  const chart = document.querySelector("[data-chart]");
  chart.emit("plotly_click", { points: [{ data: chart.data[0], customdata: chart.data[0].customdata[0] }] });
}"""
MOST = 40
"""Features with a page: those with the lowest numbers."""
HEAVIEST = 120_000
"""Bytes of a feature's page and its data."""


class Links(HTMLParser):
    """Everything in a page that leads elsewhere."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("href", "src", "action") and value]


@pytest.fixture(scope="module")
def study(served_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The study with a hostile label, a ranking, and a damaged one."""
    import shutil

    folder = Path(shutil.copytree(served_workspace, tmp_path_factory.mktemp("site") / "study"))
    ws = Workspace.open(folder)
    with ws.database() as database, ws.writing():
        database.add_label(f"feature:{SITE}/7", SCRIPT)
    obtained = {"model": "stories", "metric": "logit_difference", "method": "ablation", "task": "t"}
    ws.keep_ranking("first", Ranking([Ref.parse("head:1.2"), Ref.parse(f"feature:{SITE}/7")], [2.0, -1.0], [], obtained))
    (folder / "rankings" / "damaged.json").write_text("{")
    return ws


@pytest.fixture(scope="module")
def copy(study: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The copy, and what was said of it."""
    out = tmp_path_factory.mktemp("public") / "with space"
    return out, write_site(study, out, refs=[(SITE, n) for n in range(MOST)], progress=False)


def test_every_link_leads_to_a_file_of_the_copy(copy: tuple[Path, dict[str, Any]]) -> None:
    out, facts = copy
    reached, todo = set(), [out / "index.html"]
    while todo:
        page = todo.pop()
        reached.add(page)
        if page.suffix != ".html":
            continue
        for link in Links(page.read_text()).found:
            parts = urlsplit(link)
            assert not parts.scheme and not parts.netloc and not link.startswith("/"), (page, link)
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert target.is_file() and target.is_relative_to(out), (page, link)
            if target not in reached:
                todo.append(target)
    written = {each for each in out.rglob("*") if each.is_file()}
    assert written - reached == {out / "saekit-site.json"}
    assert facts["files"] == len(written)
    assert facts["bytes"] == sum(each.stat().st_size for each in written)
    assert facts["pages"] == len(list(out.rglob("*.html")))
    assert 0 < facts["bytes_per_feature"] < HEAVIEST


def test_pages_have_what_the_server_shows(copy: tuple[Path, dict[str, Any]], study: Workspace) -> None:
    out, facts = copy
    with study.database() as database:
        live = int((database.column(SITE, "count") > 0).sum())
        label = database.feature((SITE, 9)).label
    assert facts["features"] == MOST == len(list((out / "feature").rglob("*.json")))
    data = json.loads((out / "feature" / SITE / "9.json").read_text())
    assert data["label"] == label and data["url"] == "9.html"
    rows = [row for page in (out / "features" / SITE).glob("*.json") for row in json.loads(page.read_text())["rows"]]
    assert len(rows) == len({row["ref"] for row in rows}) == live
    points = [
        point
        for trace in json.loads((out / "map" / f"{SITE}.json").read_text())["chart"]["data"]
        for point in trace["customdata"]
    ]
    assert len(points) == live
    links = [link for link, _ in points if link]
    assert len(links) == MOST and all((out / "map" / link).resolve().is_file() for link in links)


def test_it_opens_from_a_disk(copy: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, _ = copy
    with kit.chromium() as browser:
        _read(browser, out, kit.artefacts(tmp_path / "site"))


def _read(browser: Browser, out: Path, kept: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    visit = kit.Visit(page)
    page.goto((out / "index.html").as_uri())
    assert page.locator(".main-svg").count() > 0  # the training curves
    barriers, wide = visit.barriers(), [visit.overflow()]
    page.fill("#search", "script")
    page.press("#search", "Enter")
    page.wait_for_selector("#hits a")
    assert page.inner_text("#hits a") == SCRIPT
    page.click("#hits a")
    page.wait_for_selector(".main-svg")
    assert page.inner_text("h1") == SCRIPT
    page.screenshot(path=kept / "feature.png")
    for file in (
        "features/{0}/1.html",
        "map/{0}.html",
        "scatter/{0}.html",
        "dictionary/{0}.html",
        "rankings.html",
        "ranking/first.html",
    ):
        page.goto((out / file.format(SITE)).as_uri())
        barriers += visit.barriers()
        for width in kit.WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            wide.append(visit.overflow())
        page.screenshot(path=kept / f"{Path(file).parts[0]}.png")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto((out / "map" / f"{SITE}.html").as_uri())
    page.evaluate(CLICK)
    page.wait_for_url("**/feature/**")
    page.keyboard.press("j")
    page.wait_for_load_state()
    assert page.title() != "1"
    assert not visit.faults and not barriers and not any(wide)


def test_a_copy_is_replaced_and_nothing_else_is(study: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "public"
    refs = [(SITE, 7), (SITE, 9), (SITE, 11)]
    assert write_site(study, out, refs=refs, most=2, progress=False)["features"] == 2
    before = sorted(each.relative_to(out) for each in out.rglob("*"))

    def broken(*_: Any) -> Iterator[Any]:
        raise OSError(28, "No space left on device")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(site_pages, "ranking_pages", broken)
        with pytest.raises(SaekitError, match="No room"):
            write_site(study, out, progress=False)
    assert sorted(each.relative_to(out) for each in out.rglob("*")) == before
    assert [each.name for each in tmp_path.iterdir()] == ["public"]
    assert write_site(study, out, refs=refs, progress=False)["features"] == 3
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="not such pages"):
        write_site(study, other, progress=False)
    assert [each.name for each in other.iterdir()] == ["thesis.tex"]


def test_links_are_relative_to_their_page() -> None:
    places = Places(
        {"/w/s": "index.html", "/w/s/features?dictionary=a": "features/a/1.html", "/w/s/f:a/7": "f/a/7.html"}, {"page": "1"}
    )
    assert places.link("/w/s/features?page=1&dictionary=a", "f/a/7.html") == "../../features/a/1.html"
    assert places.link("/w/s/f%3Aa/7#labels", "f/a/9.html") == "7.html#labels"
    assert places.link("/w/s/features?dictionary=a&page=2", "index.html") is None
    assert places.link("https://example.org/w/s", "index.html") is None
    html = '<a rel="x" href="/w/s/f:a/7">a</a> <a href="/w/s/none">b</a> href=&#34;/w/s&#34;'
    assert places.html(html, "f/a/9.html") == '<a rel="x" href="7.html">a</a> <a>b</a> href=&#34;/w/s&#34;'


def test_the_command_writes_a_copy(saekit: Saekit, study: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "public"
    outcome = saekit("report", study.path, "--site", f"{out}/", "--features", "7,9", "--json")
    assert outcome.status == 0, outcome.stderr
    assert outcome.json["features"] == 2
    assert outcome.json["site"] == str(out / "index.html")
    assert outcome.json["left_out"].keys() == {"bench", "compare", "heads", "inspect"}
    monkeypatch.chdir(tmp_path)
    outcome = saekit("report", study.path, "--site", "plain")
    assert outcome.status == 2 and "--site plain/" in outcome.stderr
    assert saekit("report", study.path, "--site", "./plain", "--most", 1, "--json").json["features"] == 1
    assert {each.name for each in tmp_path.iterdir()} == {"public", "plain"}
