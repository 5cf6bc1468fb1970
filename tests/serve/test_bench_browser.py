"""The steering bench and the inspector in a real browser, used as a person does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from saekit.serve.app import create_app
from tests.kit import browser as kit
from tests.kit.serving import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for the module."""
    with kit.chromium() as found:
        yield found


@pytest.fixture(scope="module")
def address(browser: Browser, served_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = Path(shutil.copytree(served_workspace, tmp_path_factory.mktemp("browser") / "study"))
    with serving(create_app([folder])) as found:
        yield found


@pytest.fixture
def page(browser: Browser, address: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page whose console stays empty, that asks no other host, and that is open to all when the test ends."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    visit = kit.Visit(context.new_page(), address)
    yield visit.page
    barriers = visit.barriers()
    visit.page.emulate_media(color_scheme="dark")
    visit.page.screenshot(path=kit.artefacts(tmp_path / "pages") / f"{request.node.name}.png", full_page=True)
    barriers += visit.barriers()
    context.close()
    assert not visit.faults
    assert not barriers


def test_steer_sweep_save_reload_and_share(page: Page, address: str, tmp_path: Path) -> None:
    page.goto(f"{address}/w/study/bench")
    page.fill("#add", "7")
    page.press("#add", "Enter")
    page.wait_for_selector("#chips li:nth-child(1)")
    page.fill("#add", "head:3.2")
    page.click("#add-button")
    page.wait_for_selector("#chips li:nth-child(2)")
    page.click("#chips li:nth-child(2) button")  # removed again
    page.fill("#chips li:nth-child(1) input[type=number]", "1.5")
    page.fill("#max_tokens", "12")
    page.fill("#prompt", f"Tom {HOSTILE}")
    page.press("#prompt", "Control+Enter")
    page.wait_for_selector("#command:not(:empty)", timeout=60_000)
    texts = {arm: page.inner_text(f'[data-arm="{arm}"] .said') for arm in ("baseline", "steered", "random")}
    assert len(set(texts.values())) == 3
    assert page.inner_text('[data-arm="steered"] [data-measure="kl"]') not in ("–", "0")
    assert "1.5norm" in page.inner_text("#command")
    page.check("#differences")
    assert page.locator('[data-arm="steered"] .said span').count() > 0
    page.fill("#words", "she, her")
    page.click("#sweep")
    page.wait_for_selector("#sweep-table tbody tr:nth-child(7)", timeout=120_000)
    assert page.locator("#frontier .main-svg").count() > 0
    page.fill("#name", "first")
    page.click("#save")
    page.wait_for_selector("#runs a")
    with page.expect_download() as waited:
        page.click("#download")
    waited.value.save_as(tmp_path / "run.json")
    page.goto(f"{address}/w/study/bench?run=first")
    page.wait_for_selector("#command:not(:empty)")
    assert page.inner_text('[data-arm="steered"] .said') == texts["steered"]
    assert page.input_value("#chips li input[type=number]") == "1.5"
    shared: dict[str, Any] = json.loads((tmp_path / "run.json").read_text())
    shared["result"]["arms"]["steered"]["text"] = HOSTILE
    (tmp_path / "hostile.json").write_text(json.dumps(shared))
    page.set_input_files("#file", tmp_path / "hostile.json")
    page.wait_for_selector("#keep-said:not(:empty)")
    assert page.inner_text('[data-arm="steered"] .said') == HOSTILE
    assert page.title() != "1"
    page.check("input[name=mode][value=chat]")
    for message in ("Hello", "And then?"):
        page.fill("#prompt", message)
        page.click("#run")
        page.wait_for_selector("#run:not([disabled])", timeout=60_000)
    assert page.locator('[data-arm="steered"] .chat p').all_inner_texts()[::2] == ["Hello", "And then?"]
    assert page.locator('[data-arm="steered"] .chat .assistant').count() == 1


def test_read_a_text_and_follow_a_feature(page: Page, address: str) -> None:
    page.goto(f"{address}/w/study/inspect")
    page.fill("#text", f"Once upon a time {HOSTILE}")
    page.press("#text", "Control+Enter")
    page.wait_for_selector("#features tbody tr", timeout=60_000)
    page.press("#tokens", "ArrowLeft")
    chosen = page.inner_text("#features-title")
    page.press("#tokens", "Home")
    assert page.inner_text("#features-title") != chosen
    page.press("#tokens", "End")
    page.click("#features tbody tr:first-child button")
    assert page.locator("#tokens sub").count() > 0
    page.click("#patterns")
    page.wait_for_selector("#heads > div")
    assert page.locator("#lens-table tbody tr").count() == 5
    page.set_viewport_size({"width": 400, "height": 900})
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 400
    assert page.title() != "1"
