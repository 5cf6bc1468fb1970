"""The inspector: what it says of each token is what the model, the dictionary and the lens give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from saekit.workspace.workspace import Workspace

AT = "/w/study/inspect"
TEXT = "Once upon a time, there was a little girl named Lily."


@pytest.fixture(scope="module")
def ws(client: TestClient) -> Workspace:
    found: Workspace = client.app.state.served.workspaces["study"].workspace  # type: ignore[attr-defined]
    return found


@pytest.fixture(scope="module")
def found(client: TestClient) -> dict[str, Any]:
    answer = client.post(f"{AT}/read", json={"text": TEXT})
    assert answer.status_code == 200, answer.text
    read: dict[str, Any] = answer.json()
    return read


def test_features_and_error(ws: Workspace, found: dict[str, Any]) -> None:
    """Against the dense code."""
    sae, ids = ws.sae("resid_post.2"), ws.lm.text.ids([TEXT])
    x = ws.lm.run(ids, read=["resid_post.2"], logits=None)["resid_post.2"][0]
    with torch.no_grad():
        code = sae.encode_dense(x)
        error = (x - sae.decode(code)).pow(2).sum(1) / x.pow(2).sum(1)
    assert found["dictionary"] == "resid_post.2"
    assert found["tokens"] == ws.lm.text.token_strings(ids[0])
    for t, row in enumerate(found["positions"]):
        best = code[t].topk(6)
        assert [each["feature"] for each in row["features"]] == best.indices.tolist()
        assert [each["value"] for each in row["features"]] == pytest.approx(best.values.tolist(), rel=1e-4)
        assert row["error"] == pytest.approx(float(error[t]), rel=1e-3)
    for unit, about in found["features"].items():
        assert about["values"] == pytest.approx(code[:, int(unit)].tolist(), rel=1e-4)
        record = ws.database().feature("resid_post.2", int(unit))
        assert (about["label"], about["max"]) == (record.label, pytest.approx(record.max))


def test_the_lens(ws: Workspace, found: dict[str, Any]) -> None:
    """Its last row is the model's own prediction."""
    logits = ws.lm.run(ws.lm.text.ids([TEXT]), logits="all").logits
    assert logits is not None
    best = logits[0].softmax(-1).max(-1)
    last = found["lens"]["cells"][-1]
    assert found["lens"]["sites"] == [f"resid_post.{layer}" for layer in range(5)]
    assert [cell[0]["token"] for cell in last] == ws.lm.text.token_strings(best.indices.tolist())
    assert [cell[0]["value"] for cell in last] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_patterns(client: TestClient, ws: Workspace) -> None:
    made = client.post(f"{AT}/patterns", json={"text": TEXT, "layer": 3}).json()
    wanted = ws.lm.run(ws.lm.text.ids([TEXT]), read=["pattern.3"], logits=None)["pattern.3"][0]
    assert torch.allclose(torch.tensor(made["patterns"]), wanted.float(), atol=6e-4)


def test_a_chat(client: TestClient, ws: Workspace) -> None:
    chat = [{"role": "user", "content": "Hello"}]
    read = client.post(f"{AT}/read", json={"messages": chat}).json()
    assert read["tokens"] == ws.lm.text.token_strings(ws.lm.text.ids(["User: Hello\nAssistant:"])[0])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"text": "a " * 600}, 400),
        ({"text": TEXT, "lens": "jacobian"}, 400),
        ({"text": TEXT, "lens": "../x"}, 400),
        ({"text": TEXT, "dictionary": "resid_post.4"}, 409),
        ({"text": TEXT, "other": 1}, 422),
        ({"text": "x" * 30_000}, 422),
    ],
)
def test_what_cannot_be_read(client: TestClient, body: dict[str, Any], status: int) -> None:
    assert client.post(f"{AT}/read", json=body, headers={"accept": "application/json"}).status_code == status


def test_layers_that_are_not_there(client: TestClient) -> None:
    answer = client.post(f"{AT}/patterns", json={"text": TEXT, "layer": 77}, headers={"accept": "application/json"})
    assert answer.status_code == 404


def test_the_page_escapes_its_text(client: TestClient) -> None:
    page = client.get(AT, params={"text": "</textarea><script>alert(1)</script>"})
    assert page.status_code == 200
    assert "<script>alert" not in page.text
