"""Neuronpedia's shapes: a feature as the export has it, and steering as its inference server does it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from saekit.lm import Edit
from saekit.workspace.workspace import Workspace
from tests.kit.commands import Saekit

SOURCE = "2-resid-post-saekit"
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def ws(client: TestClient) -> Workspace:
    found: Workspace = client.app.state.served.workspaces["study"].workspace  # type: ignore[attr-defined]
    return found


def test_a_feature_is_the_row_of_the_export(client: TestClient, served_workspace: Path, saekit: Saekit, tmp_path: Path) -> None:
    assert saekit("export", served_workspace, tmp_path / "np", "--format", "neuronpedia").status == 0
    (folder,) = (tmp_path / "np").glob(f"*/{SOURCE}")

    def rows(kind: str) -> list[dict[str, Any]]:
        with gzip.open(folder / kind / "batch-0.jsonl.gz", "rt") as file:
            return [_timeless(row) for row in map(json.loads, file) if row["index"] == "7"]

    found = client.get(f"/api/feature/{folder.parent.name}/{SOURCE}/7").json()
    (row,) = rows("features")
    assert row["pos_str"]
    assert {key: _timeless(found)[key] for key in row} == row
    for kind in ("activations", "explanations"):
        assert rows(kind)
        assert list(map(_timeless, found[kind])) == rows(kind)


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "createdAt"}


def test_what_is_not_there(client: TestClient) -> None:
    model = client.get("/v1/models").json()["data"][0]["language_model"].rpartition("/")[2]
    missing = client.get(f"/api/feature/{model}/{SOURCE}/9999", headers={"accept": "application/json"})
    assert (missing.status_code, missing.json()["error"]) == (404, "UnknownRef")
    other = client.get(f"/api/feature/{model}/3-none/1", headers={"accept": "application/json"})
    assert other.status_code == 404
    assert SOURCE in other.json()["message"] + other.json()["hint"]


def asked(**fields: Any) -> dict[str, Any]:
    feature = {"modelId": "stories260k", "layer": SOURCE, "index": 7, "strength": 3}
    settings = {"temperature": 0.8, "n_tokens": 12, "seed": 16, "strength_multiplier": 2, "steer_method": "SIMPLE_ADDITIVE"}
    return {"modelId": "stories260k", "features": [feature], **settings, **fields}


def test_steering_adds_the_direction_at_every_token(client: TestClient, ws: Workspace) -> None:
    """Against plain additions of 3 * 2 times the decoder row."""
    row = ws.sae("resid_post.2").W_dec[7].detach()
    push = Edit(ws.lm.site("resid_post.2"), lambda x, at: x + 6 * row, positions="all")
    settings: Any = {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "seed": 16, "max_new_tokens": 12}
    made = client.post("/api/steer", json=asked(prompt=PROMPT)).json()
    assert made["DEFAULT"] == PROMPT + ws.lm.generate(PROMPT, **settings).texts[0]
    assert made["STEERED"] == PROMPT + ws.lm.generate(PROMPT, interventions=[push], **settings).texts[0]
    assert made["DEFAULT"] != made["STEERED"]
    assert len(made["steeredLogProbs"]) == 12
    first = made["defaultLogProbs"][0]
    logits = ws.lm.run(torch.tensor(ws.lm.text.ids([PROMPT])), logits="last").logits
    assert logits is not None
    assert [each["logprob"] for each in first["topLogprobs"]] == pytest.approx(
        logits[0].log_softmax(-1).topk(5).values.tolist(), abs=1e-4
    )
    streamed = client.post("/api/steer", json=asked(prompt=PROMPT, stream=True)).text
    *_, last = [json.loads(line.removeprefix("data: ")) for line in streamed.splitlines() if line]
    assert {**last, "id": made["id"]} == made


def test_chats(client: TestClient) -> None:
    chat = [{"role": "user", "content": "Hello"}]
    made = client.post("/api/steer-chat", json=asked(defaultChatMessages=chat, steeredChatMessages=chat)).json()
    for arm in ("DEFAULT", "STEERED"):
        assert made[arm]["chatTemplate"][:1] == chat
        assert made[arm]["chatTemplate"][1]["role"] == "assistant"
    assert made["STEERED"] != made["DEFAULT"]


def test_everything_is_described(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    posts = {path: paths[path]["post"] for path in ("/v1/completions", "/v1/chat/completions", "/api/steer", "/api/steer-chat")}
    assert all(each["description"] and "requestBody" in each for each in posts.values())
    assert "get" in paths["/api/feature/{model}/{source}/{index}"]
