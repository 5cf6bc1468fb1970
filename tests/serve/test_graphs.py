"""Pages of attribution graphs: made, kept, arranged by people, and exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from saekit.errors import ConfigError, WorkspaceError
from saekit.locate.graphs import PrunedGraph
from saekit.locate.graphs.arrangement import Arrangement
from saekit.serve.app import create_app
from saekit.serve.site.write import write_site
from saekit.workspace import graphs as kept
from saekit.workspace.workspace import Workspace
from tests.kit import browser as kit
from tests.kit.browser import Visit
from tests.kit.commands import Saekit
from tests.kit.serving import serving
from tests.serve.conftest import HOME, Client

if TYPE_CHECKING:
    from playwright.sync_api import Page

PROMPT = "Once upon a <b>time"
NAME = "once-upon-a-b-time"
AT = f"/w/circuits/graph:{NAME}"


@pytest.fixture(scope="module")
def made(saekit: Saekit, stories_path: Path, tinystories_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with transcoders of two layers, called `circuits`, and a graph that the command line kept."""
    folder = tmp_path_factory.mktemp("graphs") / "circuits"
    sites = [word for layer in (1, 2) for word in ("--site", f"mlp_in.{layer}->mlp_out.{layer}")]
    sizes = ["--latents", 128, "--k", 8, "--tokens", 10_000, "--train-tokens", 20_000]
    outcome = saekit("fit", stories_path, *sites, "--data", tinystories_path, *sizes, "--out", folder, "--json")
    assert outcome.status == 0, outcome.stderr
    outcome = saekit("circuit", folder, PROMPT, "--json")
    assert outcome.status == 0, outcome.stderr
    assert outcome.json["files"] == [str(folder / "graphs" / f"{NAME}.json")]
    return folder


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "circuits"))


def refs_of(client: TestClient) -> list[str]:
    return [node["ref"] for node in client.get(f"{AT}.json").json()["nodes"] if node["kind"] in ("feature", "error")]


def save(client: TestClient, **body: Any) -> Any:
    return client.post(f"{AT}/arrangement", json=body, headers={"origin": HOME, "accept": "application/json"})


def test_a_kept_graph_is_read_as_it_was(made: Path) -> None:
    graph = kept.read(Workspace.open(made), NAME)
    assert graph.nodes and graph.links and graph.effects
    assert PrunedGraph.from_dict(json.loads(json.dumps(graph.to_dict()))) == graph
    whole = graph.to_dict()
    first, *others = whole["nodes"]
    damages: list[Any] = [{}, [], {**whole, "links": [{"source": 0, "target": 10**6, "weight": 1.0}]}]
    damages += [{**whole, "nodes": [first | wrong, *others]} for wrong in ({"kind": "what"}, {"position": 99})]
    damages += [{**whole, "facts": whole["facts"] | wrong} for wrong in ({"layers": "x"}, {"replacement_score": None})]
    for damaged in damages:
        with pytest.raises(ConfigError, match="no attribution graph"):
            PrunedGraph.from_dict(damaged)


def test_pins_groups_and_pruning_are_saved_and_exported(own: Path, open_client: Client) -> None:
    client = open_client(own)
    first, second, third = refs_of(client)[:3]
    groups = [{"name": "<i>beginning", "nodes": [first, second]}]
    answer = save(client, pinned=[third], supernodes=groups, share=0.7, saved=0)
    assert answer.status_code == 200 and answer.json() == {"saved": 1}
    for again in (client, open_client(own)):  # the same server, and one that is started later
        found = again.get(f"{AT}.json").json()
        assert found["arrangement"] == {"pinned": [third], "supernodes": groups, "share": 0.7} and found["saved"] == 1
        assert {node["ref"] for node in found["nodes"] if node["pinned"]} == {third}
    page = client.get(AT).text
    assert "<i>beginning" not in page and "&lt;i&gt;beginning" in page
    exported = client.get(f"{AT}/circuit-tracer.json").json()
    ids = {node["node_id"] for node in exported["nodes"]}
    query = exported["qParams"]
    assert len(query["pinnedIds"]) == 1 and set(query["pinnedIds"]) <= ids and query["pruningThreshold"] == 0.7
    assert query["supernodes"][0][0] == "<i>beginning" and len(query["supernodes"][0]) == 3
    assert set(query["supernodes"][0][1:]) <= ids


def test_the_work_of_somebody_else_is_not_overwritten(own: Path, open_client: Client) -> None:
    client = open_client(own)
    (first, second) = refs_of(client)[:2]
    assert save(client, pinned=[first], saved=0).status_code == 200
    late = save(client, pinned=[second], saved=0)
    assert late.status_code == 409 and "Somebody else" in late.json()["message"]
    assert client.get(f"{AT}.json").json()["arrangement"]["pinned"] == [first]
    # A graph that is made again keeps what people made of it.
    ws = Workspace.open(own)
    kept.keep(ws, NAME, kept.read(ws, NAME))
    assert kept.arrangement(ws, NAME) == (Arrangement((first,)), 1)


@pytest.mark.parametrize(
    "body",
    [
        {"pinned": []},
        {"saved": True},
        {"saved": 0, "pinned": [7]},
        {"saved": 0, "pinned": "all"},
        {"saved": 0, "share": 0},
        {"saved": 0, "share": "nan"},
        {"saved": 0, "supernodes": [{"name": " ", "nodes": []}]},
        {"saved": 0, "supernodes": [{"name": "a", "nodes": ["x"]}, {"name": "b", "nodes": ["x"]}]},
    ],
)
def test_impossible_arrangements_are_refused(own: Path, open_client: Client, body: dict[str, Any]) -> None:
    answer = save(open_client(own), **body)
    assert answer.status_code == 400 and answer.json()["hint"]
    assert not (own / "graphs" / f"{NAME}.arrangement.json").exists()


def test_many_groups_are_checked_in_one_pass() -> None:
    """Comparing every node with every other one does not end before the limit of a test."""
    groups = [{"name": "g", "nodes": [f"{group}/{n}" for n in range(1000)]} for group in range(100)]
    assert len(Arrangement.from_dict({"supernodes": groups}).supernodes) == 100


def test_no_graph_takes_the_file_of_an_arrangement(own: Path) -> None:
    ws = Workspace.open(own)
    graph = kept.read(ws, NAME)
    kept.arrange(ws, NAME, Arrangement((graph.nodes[0].ref,)), 0)
    with pytest.raises(ConfigError, match="cannot be called"):
        kept.keep(ws, f"{NAME}.arrangement", graph)
    assert kept.arrangement(ws, NAME) == (Arrangement((graph.nodes[0].ref,)), 1)


def test_a_read_only_server_saves_nothing(own: Path, open_client: Client) -> None:
    client = open_client(own, read_only=True)
    assert save(client, pinned=[], saved=0).status_code == 403
    assert client.post("/w/circuits/graphs", data={"prompt": "A dog"}, headers={"origin": HOME}).status_code == 403
    page = client.get(AT).text
    assert "group-save" not in page and 'data-save=""' in page


def test_a_graph_is_made_from_the_page(own: Path, open_client: Client) -> None:
    client = open_client(own)
    answer = client.post("/w/circuits/graphs", data={"prompt": "The dog"}, headers={"origin": HOME}, follow_redirects=False)
    assert answer.status_code == 303 and answer.headers["location"] == "/w/circuits/graph:the-dog"
    found = client.get("/w/circuits/graph:the-dog.json").json()
    assert "".join(found["tokens"]).endswith("The dog") and found["links"]
    listed = client.get("/w/circuits/graphs.json").json()["graphs"]
    assert [each["name"] for each in listed] == [NAME, "the-dog"] and listed[1]["links"] == len(found["links"])


def test_what_cannot_be_shown_is_said(own: Path, open_client: Client, client: TestClient) -> None:
    (own / "graphs" / "broken.json").write_text("{")
    here = open_client(own)
    rows = {each["name"]: each for each in here.get("/w/circuits/graphs.json").json()["graphs"]}
    assert rows["broken"]["problem"] and not rows[NAME]["problem"]
    assert here.get("/w/circuits/graph:none.json").status_code == 409
    assert here.get("/w/circuits/graph:..%2F..%2Fsaekit.json").status_code in (400, 404, 409)
    without = client.get("/w/study/graphs.json").json()
    assert "no transcoder" in without["why_none"] and without["graphs"] == []
    with pytest.raises(WorkspaceError, match="no graph"):
        kept.arrange(Workspace.open(own), "none", Arrangement(), 0)


def test_pin_group_save_and_come_back(own: Path) -> None:
    with kit.chromium() as browser, serving(create_app([own])) as address:
        visit = Visit(browser.new_page(), address)
        page: Page = visit.page
        page.goto(f"{address}{AT}")
        marks = page.locator(".node.feature, .node.error")
        for n in range(2):
            marks.nth(n).focus()
            page.keyboard.press("p")
        page.fill("#group-name", "two <b>of them")
        page.click("#group-make")
        assert page.inner_text("#group-list li button:first-child") == "two <b>of them"
        assert page.locator(".node.group").count() == 1
        page.fill("#share", "0.9")
        page.click("#group-save")
        page.wait_for_function("() => document.getElementById('group-said').textContent.startsWith('Saved')")
        page.reload()
        assert page.locator(".node.group").count() == 1 and page.input_value("#share") == "0.9"
        page.locator(".node.group").click()
        assert "two <b>of them" in page.inner_text("#panel")
        page.uncheck("#grouped")
        assert page.locator(".node.group:not(.gone)").count() == 0
        page.set_viewport_size({"width": 400, "height": 900})
        assert not visit.overflow() and not visit.barriers() and not visit.faults


def test_saving_keeps_what_this_graph_lacks(own: Path) -> None:
    """Pins and groups of an earlier graph of that name, and members that are not drawn in a group."""
    ws = Workspace.open(own)
    refs = {node.kind: node.ref for node in kept.read(ws, NAME).nodes}
    lost, own_ref = "feature:mlp_in.1->mlp_out.1/9999[7]", refs["feature"]
    groups = [{"name": "earlier", "nodes": [lost]}, {"name": "mixed", "nodes": [own_ref, refs["logit"], f"{lost[:-3]}[8]"]}]
    made = Arrangement.from_dict({"pinned": [lost], "supernodes": groups, "share": 0.8})
    kept.arrange(ws, NAME, made, 0)
    with kit.chromium() as browser, serving(create_app([own])) as address:
        visit = Visit(browser.new_page(), address)
        page: Page = visit.page
        page.goto(f"{address}{AT}")
        assert page.locator("#group-list li").count() == 1
        box = page.locator("#canvas svg").bounding_box()
        view = page.locator("#canvas svg").get_attribute("viewBox")
        assert box and view and box["width"] <= 1.5 * float(view.split()[2]) + 1  # a small graph is not blown up
        page.locator(".node.error").first.focus()
        page.keyboard.press("p")
        page.click("#group-save")
        page.wait_for_function("() => document.getElementById('group-said').textContent.startsWith('Saved')")
        assert not visit.faults
    found, saved = kept.arrangement(ws, NAME)
    assert saved == 2 and lost in found.pinned and len(found.pinned) == 2
    assert {each.name: set(each.nodes) for each in found.supernodes} == {each.name: set(each.nodes) for each in made.supernodes}


def test_a_copy_in_files_has_the_graph(own: Path, tmp_path: Path) -> None:
    ws = Workspace.open(own)
    ref = kept.read(ws, NAME).nodes[0].ref
    kept.arrange(ws, NAME, Arrangement((ref,)), 0)
    write_site(ws, tmp_path / "public", most=1, progress=False)
    file = tmp_path / "public" / "graph" / f"{NAME}.html"
    assert "group-save" not in file.read_text() and json.loads(file.with_suffix(".json").read_text())["arrangement"][
        "pinned"
    ] == [ref]
    with kit.chromium() as browser:
        visit = Visit(browser.new_page(), "file://")
        visit.page.goto(file.as_uri())
        assert visit.page.locator(".node").count() == len(kept.read(ws, NAME).nodes)
        assert visit.page.locator(".node.pinned").count() == 1 and not visit.faults
