"""What needs the model: a text on a feature's page, searches by text, and steering. Against the model run by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from saekit.workspace.workspace import Workspace

SITE = "resid_post.2"
TEXT = "Once upon a time there was a little girl. <b>She</b> had a red ball & a dog."


@pytest.fixture(scope="module")
def study(served_workspace: Path) -> Workspace:
    return Workspace.open(served_workspace)


def by_hand(ws: Workspace, text: str) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Tokens, and (T, F) activations of all features."""
    lm, sae = ws.lm, ws.sae(SITE)
    ids = [lm.bos_token_id, *lm.tokenizer.encode(text, add_special_tokens=False)]
    with torch.no_grad():
        acts = lm.run(torch.tensor([ids]), read=[SITE], logits=None)[SITE][0]
        return lm.text.token_strings(ids), sae.encode(acts).dense(sae.cfg.n_latents).double().numpy()


def strongest(ws: Workspace) -> int:
    """A feature that fires on the text, and not everywhere."""
    _, codes_TF = by_hand(ws, TEXT)
    fires_F = (codes_TF[1:] > 0).sum(0)
    return int(np.argmax(np.where((fires_F > 0) & (fires_F < 10), codes_TF[1:].max(0), -1)))


def test_a_text_is_shaded_by_the_activations_of_the_model(client: TestClient, study: Workspace) -> None:
    number = strongest(study)
    tokens, codes_TF = by_hand(study, TEXT)
    path = f"/w/study/feature:{SITE}/{number}/test"
    view = client.post(f"{path}.json", data={"text": TEXT}).json()
    assert "".join(piece["text"] for piece in view["pieces"]) == "".join(tokens)
    shown = [piece["value"] for piece in view["pieces"] if piece["shade"]]
    assert shown == pytest.approx([value for value in codes_TF[:, number] if value > 0], rel=1e-4)
    assert (view["fires"], view["tokens"]) == (len(shown), len(tokens))
    for headers in ({}, {"x-part": "yes"}):  # the whole page, and the part that a script puts into an open one
        answer = client.post(path, data={"text": TEXT}, headers=headers)
        assert answer.status_code == 200 and ("<html" in answer.text) == (not headers)
        assert "<b>She" not in answer.text and "ball &amp; a" in answer.text


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_a_text_finds_the_features_that_fire_most_on_it(client: TestClient, study: Workspace, pool: str) -> None:
    _, codes_TF = by_hand(study, "a red ball")
    with study.database() as database:
        largest_F = np.maximum(database.column(SITE, "max"), 1e-12)
    share_TF = codes_TF[1:] / largest_F
    score_F = np.minimum(share_TF.max(0) if pool == "max" else share_TF.mean(0), 1)
    hits = client.get("/w/study/search.json", params={"q": "a red ball", "mode": "text", "pool": pool}).json()["hits"]
    assert len(hits) > 5
    assert [hit["score"] for hit in hits] == pytest.approx(sorted(score_F[score_F > 0], reverse=True)[:20], abs=1e-4)
    assert all(hit["score"] == pytest.approx(score_F[hit["feature"]], abs=1e-4) for hit in hits)
    away = client.get("/w/study/search.json", params={"q": "a red ball", "contrast": "a red ball", "mode": "text", "pool": pool})
    assert away.json()["hits"] == []


def test_a_text_against_another_finds_what_the_command_finds(client: TestClient, study: Workspace) -> None:
    asked = {"q": "My [[dog]] barks.", "contrast": "My car is loud.", "mode": "text"}
    hits = client.get("/w/study/search.json", params=asked).json()["hits"]
    with study.database() as database:
        wanted = database.search_texts(study.lm, study.sae(SITE), [asked["q"]], [asked["contrast"]], k=20)
    assert [(hit["feature"], hit["score"], hit["why"]) for hit in hits] == [
        (each.feature, each.score, each.why) for each in wanted
    ]


def test_steering_is_that_of_the_workspace(client: TestClient, study: Workspace) -> None:
    number = strongest(study)
    fields = {"prompt": "Once upon", "strength": "2", "op": "add", "tokens": "8", "seed": "3"}
    view = client.post(f"/w/study/feature:{SITE}/{number}/steer.json", data=fields).json()
    made = study.steer(["Once upon"], [f"{SITE}/{number}:2"], op="add", max_new_tokens=8, seed=3)
    assert (view["baseline"], view["steered"], view["random"]) == (made.baseline, made.steered, made.random)
    assert view["kl"] == pytest.approx(made.kl, rel=1e-4)


@pytest.mark.parametrize(
    ("part", "fields", "said"),
    [
        ("test", {"text": ""}, "token"),
        ("test", {"text": "x" * 30_000}, "characters"),
        ("test", {"text": "word " * 3000}, "token"),
        ("steer", {"prompt": "  "}, "prompt"),
        ("steer", {"prompt": "Once", "strength": "much"}, "strength"),
        ("steer", {"prompt": "Once", "tokens": "100000"}, "tokens"),
        ("steer", {"prompt": "Once", "op": "destroy"}, "operation"),
        ("steer", {"prompt": "Once", "seed": "-1"}, "seed"),
    ],
)
def test_what_is_impossible_is_said(client: TestClient, part: str, fields: dict[str, str], said: str) -> None:
    path = f"/w/study/feature:{SITE}/7/{part}"
    answer = client.post(f"{path}.json", data=fields)
    assert answer.status_code == 400 and said in answer.json()["message"]
    shown = client.post(path, data=fields, headers={"x-part": "yes"})
    assert shown.status_code == 400 and "<html" not in shown.text and "note bad" in shown.text


def test_the_state_of_the_model_is_told(client: TestClient) -> None:
    client.post(f"/w/study/feature:{SITE}/7/test", data={"text": "Once"})
    assert client.get("/w/study/model.json").json()["state"] == "ready"
