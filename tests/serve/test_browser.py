"""Every page in a real browser, on a workspace of the laboratory model and on one of a pretrained model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from saekit.serve.app import create_app
from saekit.workspace import interventions
from saekit.workspace.workspace import Workspace
from tests.kit import browser as kit
from tests.kit.browser import Visit
from tests.kit.commands import Saekit
from tests.kit.serving import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser

KNOWN = {"workspace", "dictionary", "features", "scatter", "map", "feature", "compare"}
KNOWN |= {"search", "inspect", "rankings", "ranking", "bench", "heads", "graphs"}
"""Pages that a walk over the links has to find; it looks at every other one that it finds as well."""
MOST_SHIFT = 0.1
"""The score up to which layout shift counts as good."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for the module."""
    with kit.chromium() as found:
        yield found


@pytest.fixture(scope="module")
def lab_workspace(saekit: Saekit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study of the laboratory model, called `lab`."""
    folder = tmp_path_factory.mktemp("browser") / "lab"
    sizes = ["--tokens", 10_000, "--latents", 128, "--k", 8, "--train-tokens", 20_000]
    outcome = saekit("fit", "lab", "--site", "resid_post.2", *sizes, "--out", folder, "--json")
    assert outcome.status == 0, outcome.stderr
    ws = Workspace.open(folder)
    with ws.database() as database:
        feature = database.search("French", by="promotes")[0].feature
    interventions.keep(ws, "french", interventions.described(ws, [f"{feature}:2norm"]))
    return folder


@pytest.fixture(scope="module")
def address(
    browser: Browser, lab_workspace: Path, served_workspace: Path, saekit: Saekit, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """One server over both studies, `lab` and `stories`, each with a kept ranking."""
    stories = Path(shutil.copytree(served_workspace, tmp_path_factory.mktemp("browser") / "stories"))
    for folder in (lab_workspace, stories):
        asked = ["--task", "gen:capitals", "--space", "heads", "--method", "ablation", "--prompts", 4]
        outcome = saekit("locate", folder, *asked, "--json")
        assert outcome.status == 0, outcome.stderr
    with serving(create_app([lab_workspace, stories])) as found:
        yield found


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Visit]:
    """A page of a fresh browser whose console has to stay empty, and that has to ask no other host."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    found = Visit(context.new_page(), address)
    yield found
    context.close()
    assert not found.faults


def kind_of(path: str) -> str:
    """What page of a workspace a path is: `feature` for /w/lab/feature:resid_post.2/7."""
    return path.removeprefix("/w/").partition("/")[2].partition(":")[0] or "workspace"


def walk(visit: Visit, address: str, ws: str) -> Iterator[str]:
    """Open one page of every kind that links lead to, and give its kind while it is open."""
    todo, seen = [f"{address}/w/{ws}"], {"workspace"}
    while todo:
        visit.page.goto(todo.pop(0))
        visit.page.wait_for_function("() => !document.querySelector('meta[http-equiv=refresh]')")  # the model is being loaded
        links = visit.page.eval_on_selector_all("a[href]", "(all) => all.map((each) => each.href)")
        yield kind_of(urlsplit(visit.page.url).path)
        for link in links:
            path = urlsplit(link).path
            inside = link.startswith(address) and path.startswith(f"/w/{ws}/") and not path.endswith(".json")
            if inside and kind_of(path) not in seen:
                seen.add(kind_of(path))
                todo.append(link)


@pytest.mark.parametrize("ws", ["lab", "stories"])
def test_every_page_is_whole_narrow_still_and_open_to_all(visit: Visit, address: str, tmp_path: Path, ws: str) -> None:
    kept, seen, wrong = kit.artefacts(tmp_path / "pages"), [], []
    for kind in walk(visit, address, ws):
        seen.append(kind)
        wrong += [f"{kind} moves by {shift:.2f}"] if (shift := visit.shift()) > MOST_SHIFT else []
        for scheme, widths in (("light", kit.WIDTHS), ("dark", kit.WIDTHS[::-1])):
            visit.page.emulate_media(color_scheme=scheme)
            for width in widths:
                visit.resize(width)
                wrong += [f"{kind} at {width} px: {wide}"] if (wide := visit.overflow()) else []
                visit.page.screenshot(path=kept / f"{ws}-{kind}-{width}-{scheme}.png", full_page=True)
            wrong += visit.barriers() if ws == "lab" else []
        visit.page.emulate_media(color_scheme="light")
        visit.resize(1280)
    assert not wrong
    assert set(seen) >= KNOWN
    assert len(list(kept.glob(f"{ws}-*.png"))) == 4 * len(seen)


def test_three_clicks_from_the_first_page_to_a_steered_chat(visit: Visit, address: str, tmp_path: Path) -> None:
    """As the README says: the name of what steers, Send, and colours."""
    page = visit.page
    page.goto(f"{address}/w/lab")
    page.get_by_role("link", name="french", exact=True).click()
    page.get_by_role("button", name="Send").click()
    page.wait_for_selector("#command:not(:empty)", timeout=60_000)
    page.get_by_label("Colour tokens").click()
    said = {arm: page.inner_text(f'[data-arm="{arm}"] .said') for arm in ("baseline", "steered", "random")}
    assert all(page.inner_text(f'[data-arm="{arm}"] .chat') == "Hello, how are you?" for arm in said)
    assert len(set(said.values())) == 3 and min(map(len, said.values())) > 0
    assert page.locator('[data-arm="steered"] .said span').count() > 0
    page.screenshot(path=kit.artefacts(tmp_path / "pages") / "chat.png", full_page=True)
    assert not visit.barriers()


def test_find_a_feature_and_write_about_it(visit: Visit, address: str) -> None:
    page = visit.page
    page.goto(f"{address}/w/lab")
    page.keyboard.press("/")
    page.keyboard.type("French")
    page.keyboard.press("Enter")
    page.wait_for_selector(".hits li")
    page.keyboard.press("j")
    page.keyboard.press("j")
    chosen = page.inner_text("li.chosen a")
    page.keyboard.press("k")
    assert page.inner_text("li.chosen a") == page.inner_text(".hits li:first-child a") != chosen
    page.keyboard.press("Enter")
    page.wait_for_selector("#examples")
    for what, text in (("Your label", "<b>mine</b>"), ("Your note", "looks & sounds right"), ("safety", "tried")):
        page.get_by_placeholder(what).fill(text)
        page.get_by_role("button", name={"Your label": "Add label", "Your note": "Add note"}.get(what, "Put on list")).click()
        page.wait_for_load_state()
    page.reload()
    assert page.inner_text("h1") == "<b>mine</b>"
    assert "looks & sounds right" in page.inner_text("main")
    page.click(".chips a")
    assert page.locator("tbody tr").count() == 1
    assert page.inner_text("tbody tr td:nth-child(3)") == "<b>mine</b>"
    page.goto(f"{address}/w/lab/features")
    page.get_by_label("Kind").select_option("word")
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url("**kind=word**")
    assert set(page.locator("tbody tr td:nth-child(4)").all_inner_texts()) <= {"word"}
    page.check("tbody tr:nth-child(1) input")
    page.check("tbody tr:nth-child(2) input")
    page.click("text=Compare the chosen")
    assert page.locator(".beside > section").count() == 2


def test_a_text_and_steering_on_the_page_of_a_feature(visit: Visit, address: str) -> None:
    page = visit.page
    page.goto(f"{address}/w/stories/feature:resid_post.2/7")
    page.fill("#text", "Once upon a time <img src=x>")
    page.get_by_role("button", name="Test").click()
    page.wait_for_selector("#result-test .shaded", timeout=60_000)
    assert "<img src=x>" in page.inner_text("#result-test")
    page.get_by_role("button", name="Steer", exact=True).click()
    page.wait_for_selector("#result-steer h3", timeout=60_000)
    assert page.locator("#result-steer h3").all_inner_texts()[:2] == ["Baseline", "Steered"]
    assert not visit.barriers()
