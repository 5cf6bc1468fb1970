"""What people write in the browser: labels, notes and lists, and where it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from saekit.plugins import resolve
from saekit.serve.routers import ROUTERS
from saekit.serve.state import may_write
from saekit.workspace.workspace import Workspace
from tests.serve.conftest import HOME, Client

FEATURE = "/w/study/feature:resid_post.2/7"
REF = "feature:resid_post.2/7"
COMPUTES = ("OpenAI", "Neuronpedia", "compute")
"""Tags of routes that answer to a POST without writing."""


@pytest.fixture
def own(own_workspace: Path, open_client: Client) -> TestClient:
    return open_client(own_workspace)


def test_a_label_is_added_and_removed(own: TestClient, own_workspace: Path) -> None:
    answer = own.post(f"{FEATURE}/label", data={"text": " royal gardens "}, headers={"origin": HOME}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{FEATURE}#labels")
    own.post(f"{FEATURE}/label", data={"text": "another"})
    with Workspace.open(own_workspace).database() as database:  # a process of its own would see it too
        mine = [each for each in database.feature(REF).labels if each.method == "human"]
        assert [each.text for each in mine] == ["royal gardens", "another"]
        assert database.search("royal gardens")[0].feature == 7
    assert "royal gardens" in own.get(FEATURE).text
    assert [row["label"] for row in own.get("/w/study/features.json?source=human").json()["rows"]] == ["royal gardens"]
    own.post(f"{FEATURE}/label", data={"remove": "royal gardens"})
    with Workspace.open(own_workspace).database() as database:
        assert [each.text for each in database.feature(REF).labels if each.method == "human"] == ["another"]
    assert own.post(f"{FEATURE}/label", data={"remove": "royal gardens"}).status_code == 404


def test_notes_and_lists(own: TestClient, own_workspace: Path) -> None:
    own.post(f"{FEATURE}/note", data={"text": "first"})
    own.post(f"{FEATURE}/note", data={"text": "second"})
    own.post(f"{FEATURE}/note", data={"remove": "first"})
    own.post(f"{FEATURE}/list", data={"name": "@safety"})
    view = own.get(f"{FEATURE}.json").json()
    assert [each["text"] for each in view["notes"]] == ["second"]
    assert view["lists"] == ["safety"]
    assert [row["feature"] for row in own.get("/w/study/features.json?list=safety").json()["rows"]] == [7]
    own.post(f"{FEATURE}/list", data={"remove": "safety"})
    assert own.get(f"{FEATURE}.json").json()["lists"] == []


@pytest.mark.parametrize(
    ("part", "fields", "status"),
    [
        ("label", {"text": "  "}, 400),
        ("label", {"other": "x"}, 400),
        ("note", {"text": ""}, 400),
        ("list", {"name": "a/b c"}, 400),
        ("list", {"name": "../x"}, 400),
    ],
)
def test_an_impossible_field_changes_nothing(own: TestClient, part: str, fields: dict[str, str], status: int) -> None:
    before = own.get(f"{FEATURE}.json").json()
    assert own.post(f"{FEATURE}/{part}", data=fields).status_code == status
    assert own.get(f"{FEATURE}.json").json() == before


def test_a_body_that_is_no_form_is_refused(own: TestClient) -> None:
    assert own.post(f"{FEATURE}/label", json={"text": "x"}).status_code == 415
    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert own.post(f"{FEATURE}/label", content=b"text=\xff\xfe", headers=kind).status_code == 400
    assert own.post(f"{FEATURE}/label", content=b"&".join([b"a=1"] * 5000), headers=kind).status_code == 400


def test_another_site_cannot_write(own: TestClient) -> None:
    before = own.get(f"{FEATURE}.json").json()["labels"]
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        assert own.post(f"{FEATURE}/label", data={"text": "evil"}, headers=headers).status_code == 403
    assert own.post(f"{FEATURE}/label", data={"text": "evil"}, headers={"host": "evil.example"}).status_code == 421
    assert own.get(f"{FEATURE}.json").json()["labels"] == before


def test_a_read_only_server_writes_nothing(served_workspace: Path, open_client: Client) -> None:
    client = open_client(served_workspace, read_only=True)
    for part, fields in (("label", {"text": "x"}), ("note", {"text": "x"}), ("list", {"name": "x"})):
        assert client.post(f"{FEATURE}/{part}", data=fields).status_code == 403
    page = client.get(FEATURE).text
    assert not [part for part in ("label", "note", "list") if f"{FEATURE}/{part}" in page] and f"{FEATURE}/test" in page


def test_every_route_that_may_write_is_refused_where_the_server_is_read_only() -> None:
    found = [route for row in ROUTERS.values() for route in resolve(row.target).routes if isinstance(route, APIRoute)]
    routes = [each for each in found if each.methods - {"GET", "HEAD"}]
    assert len(routes) >= 3
    for route in routes:
        writes = may_write in [each.call for each in route.dependant.dependencies]
        assert writes != bool(set(route.tags) & set(COMPUTES)), route.path


def test_another_command_that_writes_is_waited_for(own: TestClient, own_workspace: Path) -> None:
    from saekit.locks import lock

    with lock(own_workspace / ".lock", RuntimeError("busy")):
        answer = own.post(f"{FEATURE}/label", data={"text": "x"})
    assert answer.status_code == 409
    assert "Another saekit command" in answer.text
    assert own.post(f"{FEATURE}/label", data={"text": "x"}, follow_redirects=False).status_code == 303
