"""The page of attention heads: its scores are those of the locating methods, its patterns those of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from saekit.locate.magnitude.heads import head_scores
from saekit.workspace.workspace import Workspace
from tests.kit.commands import Saekit
from tests.serve.conftest import Client

AT = "/w/study/heads"
TEXT = "Lily saw a dog. Then Lily saw a cat."


@pytest.fixture(scope="module")
def ws(client: TestClient) -> Workspace:
    found: Workspace = client.app.state.served.workspaces["study"].workspace  # type: ignore[attr-defined]
    return found


def read(client: TestClient, **asked: str) -> dict[str, Any]:
    answer = client.get(f"{AT}.json", params={"wait": "true", **asked})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_the_scores_are_those_of_the_methods(client: TestClient, ws: Workspace) -> None:
    for asked, data in (({}, None), ({"text": TEXT}, ws.lm.text.ids([TEXT]))):
        found, expected = read(client, **asked), head_scores(ws.lm, data, progress=False)
        names = [column["name"] for column in found["columns"]]
        assert {"induction", "previous_token", "pattern_entropy"} <= set(names) <= set(expected)
        for name in names:
            refs, values = expected[name]
            own = {row["ref"]: row["scores"][name] for row in found["rows"]}
            assert own == pytest.approx(dict(zip(map(str, refs), values.mean(1).tolist())))
        assert len(found["rows"]) == sum(found["layers"])


def test_rows_are_sorted_by_a_column(client: TestClient) -> None:
    values = [row["scores"]["previous_token"] for row in read(client, sort="previous_token")["rows"]]
    assert values == sorted(values, reverse=True) and len(set(values)) > 1
    answer = client.get(f"{AT}.json", params={"wait": "true", "sort": "beauty"})
    assert answer.status_code == 400 and "no column" in answer.json()["message"]


def test_the_pattern_is_that_of_the_model(client: TestClient, ws: Workspace) -> None:
    found = read(client, text=TEXT, head="2.1")["pattern"]
    ids = ws.lm.text.ids([TEXT])
    pattern_TT = ws.lm.run(ids, read=["pattern.2"], logits=None)[ws.lm.site("pattern.2")][0, 1]
    assert [value for row in found["pattern"] for value in row] == pytest.approx(pattern_TT.flatten().tolist(), abs=1e-6)
    best = found["pairs"][0]
    assert best["value"] == pytest.approx(float(pattern_TT[:, 1:].max()))
    assert float(pattern_TT[best["query_at"], best["key_at"]]) == pytest.approx(best["value"])
    assert best["query"] == ws.lm.text.token_strings(ids[0])[best["query_at"]]


@pytest.mark.parametrize("head", ["2.99", "9.0", "neuron:2/1", "x"])
def test_a_head_that_is_none_is_refused(client: TestClient, head: str) -> None:
    answer = client.get(f"{AT}.json", params={"wait": "true", "text": TEXT, "head": head})
    assert 400 <= answer.status_code < 500 and answer.json()["message"]


def test_a_long_text_is_refused(client: TestClient) -> None:
    answer = client.get(f"{AT}.json", params={"wait": "true", "text": "word " * 100})
    assert answer.status_code == 400 and "up to 64" in answer.json()["message"]


def test_the_page_says_that_the_model_is_loaded_and_shows_kept_rankings(
    own_workspace: Path, open_client: Client, saekit: Saekit
) -> None:
    asked = ["--task", "gen:pronouns", "--space", "heads", "--method", "ablation", "--prompts", 4]
    done = saekit("locate", own_workspace, *asked, "--json")
    assert done.status == 0, done.stderr
    client = open_client(own_workspace)
    first = client.get(AT)
    assert "is being loaded" in first.text and "http-equiv" in first.text
    found = read(client)
    (kept,) = [column["name"] for column in found["columns"] if column["ranking"]]
    ranking = Workspace.open(own_workspace).ranking(kept)
    assert {row["ref"]: row["scores"][kept] for row in found["rows"] if row["scores"][kept] is not None} == pytest.approx(
        {str(ref): ranking[ref] for ref in ranking}
    )
    page = client.get(AT)
    assert (
        "is being loaded" not in page.text
        and "<b>heads" not in page.text
        and f"{AT.rsplit('/', 1)[0]}/bench?f=head%3A" in page.text
    )
