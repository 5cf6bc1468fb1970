"""The steering bench: what it streams is what the command and Python give, and files and runs come back as they were."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from saekit.workspace.workspace import Workspace
from tests.kit.commands import Saekit
from tests.serve.conftest import Client

AT = "/w/study/bench"
SETUP: dict[str, Any] = {
    "chips": [
        {"target": "7", "op": "clamp", "strength": "1norm"},
        {"target": "neuron:2/17", "op": "add", "strength": "2max", "positions": "all"},
        {"target": "head:3.2", "op": "scale", "strength": "0"},
    ],
    "prompt": "Once upon a time",
    "max_tokens": 12,
    "temperature": 0.8,
    "top_p": 0.9,
    "seed": 5,
}
SCRIPT = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def ws(client: TestClient) -> Workspace:
    found: Workspace = client.app.state.served.workspaces["study"].workspace  # type: ignore[attr-defined]
    return found


def run(client: TestClient, **fields: Any) -> list[dict[str, Any]]:
    answer = client.post(f"{AT}/run", json=SETUP | fields)
    assert answer.status_code == 200, answer.text
    return [json.loads(part.removeprefix("data: ")) for part in answer.text.split("\n\n") if part]


@pytest.fixture(scope="module")
def events(client: TestClient) -> list[dict[str, Any]]:
    return run(client)


@pytest.fixture(scope="module")
def result(events: list[dict[str, Any]]) -> dict[str, Any]:
    assert events[-1]["event"] == "result", events[-1]
    found: dict[str, Any] = events[-1]["result"]
    return found


def test_the_arms_come_token_by_token(events: list[dict[str, Any]], result: dict[str, Any]) -> None:
    assert events[0] == {"event": "begun"}
    for arm in ("baseline", "steered", "random"):
        parts = [each["text"] for each in events if each["event"] == "text" and each["arm"] == arm]
        assert len(parts) > 5
        assert "".join(parts) == result["arms"][arm]["text"]
    assert len({one["text"] for one in result["arms"].values()}) == 3


def test_the_python_code_gives_the_same(result: dict[str, Any]) -> None:
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(result["snippet"], names)
    found = names["result"]
    assert [found.baseline[0], found.steered[0], found.random[0]] == [one["text"] for one in result["arms"].values()]
    assert found.kl == pytest.approx(result["arms"]["steered"]["kl"], rel=1e-4)
    assert found.random_kl == pytest.approx(result["arms"]["random"]["kl"], rel=1e-4)
    for arm, one in result["arms"].items():
        assert found.perplexity[arm] == pytest.approx(one["perplexity"], rel=1e-4)
        assert found.repetition[arm]["distinct_2"] == one["distinct_2"]
    assert str(found.kl) in printed.getvalue()


def test_the_command_gives_the_same(result: dict[str, Any], saekit: Saekit) -> None:
    program, *words = shlex.split(result["command"])
    assert program == "saekit"
    outcome = saekit(*words, "--json")
    assert outcome.status == 0, outcome.stderr
    assert [outcome.json[arm][0] for arm in result["arms"]] == [one["text"] for one in result["arms"].values()]


def test_differences_are_of_the_log_probabilities(client: TestClient, ws: Workspace, result: dict[str, Any]) -> None:
    """Against two plain passes over the steered text."""
    from saekit.workspace.interventions import described

    one = result["arms"]["steered"]
    edits = [described(ws, SETUP["chips"])]
    sampling: Any = {"temperature": 0.8, "top_p": 0.9, "top_k": 0, "seed": 5, "max_new_tokens": 12}
    made = ws.lm.generate(SETUP["prompt"], interventions=edits, **sampling)
    (prompt,), (tokens,) = made.prompt_tokens, made.tokens
    assert len(tokens) == len(one["tokens"])
    ids = [*prompt, *tokens]
    settings: Any = {"logits": "all", "positions": "last+generated", "prompt_lengths": [len(prompt)]}
    logp = [ws.lm.run([ids], edits=each, **settings).logits[0].log_softmax(-1) for each in ([], edits)]  # type: ignore[index]
    for t, token in enumerate(one["tokens"], len(prompt)):
        base, steered = (float(each[t - 1, ids[t]]) for each in logp)
        assert (token["base"], token["steered"]) == pytest.approx((base, steered), abs=1e-3)
        assert token["difference"] == token["steered"] - token["base"]


def test_a_chat_goes_on_in_each_arm(client: TestClient, ws: Workspace) -> None:
    first = [{"role": "user", "content": "Hello"}]
    chats = {
        "baseline": [*first, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "And?"}],
        "steered": first,
        "random": first,
    }
    found = run(client, mode="chat", chats=chats, temperature=0.0)[-1]["result"]["arms"]
    wanted = ws.lm.generate("User: Hello\nAssistant: Hi.\nUser: And?\nAssistant:", max_new_tokens=12).texts[0]
    assert found["baseline"]["text"] == wanted.partition("\nUser:")[0]
    refused = client.post(f"{AT}/run", json=SETUP | {"mode": "chat"}, headers={"accept": "application/json"})
    assert (refused.status_code, refused.json()["error"]) == (400, "ConfigError")


def test_a_sweep_is_what_it_says(client: TestClient, ws: Workspace) -> None:
    from saekit.evaluate.steering.side_effects import kl
    from saekit.views.bench_results import FACTORS, NEUTRAL_TOKENS
    from saekit.workspace.interventions import described
    from saekit.workspace.steering import ordinary_rows

    chips = [{"target": "7", "op": "add", "strength": "1norm"}]
    found = client.post(f"{AT}/sweep", json=SETUP | {"chips": chips, "words": "she, her,he"}).json()
    assert [each["factor"] for each in found["points"]] == list(FACTORS)
    assert found["words"] == ["she", "her", "he"]
    double = described(ws, [chips[0] | {"strength": "2norm"}])
    point = found["points"][FACTORS.index(2.0)]
    assert point["kl"] == pytest.approx(kl(ws.lm, double, ordinary_rows(ws, NEUTRAL_TOKENS)), rel=1e-3)
    front = [each for each in found["points"] if each["frontier"]]
    assert front
    for each in front:
        assert not any(o["rate"] > each["rate"] and o["kl"] <= each["kl"] for o in found["points"])
    no_words = client.post(f"{AT}/sweep", json=SETUP | {"chips": chips}, headers={"accept": "application/json"})
    assert "words" in no_words.json()["message"]
    fixed = client.post(f"{AT}/sweep", json=SETUP | {"words": "she"}, headers={"accept": "application/json"})
    assert "no strength that can vary" in fixed.json()["message"]


def test_save_reload_and_share(open_client: Client, own_workspace: Path, result: dict[str, Any]) -> None:
    browser = open_client(own_workspace)
    run_file = {"format": "saekit-bench", "version": 1, "setup": SETUP, "result": result}
    assert browser.post(f"{AT}/runs/first", json=run_file).json()["runs"] == ["first"]
    shared = browser.get(f"{AT}/runs/first.json").json()
    assert shared["result"]["arms"]["steered"]["text"] == result["arms"]["steered"]["text"]
    assert shared["setup"]["chips"][1]["target"] == "neuron:2/17"
    assert browser.post(f"{AT}/open", json=shared).json() | {"objects": 0} == shared | {"objects": 0}
    assert browser.post(f"{AT}/runs/second", json=shared).status_code == 200
    assert browser.get(f"{AT}/runs/second.json").json() == shared
    page = browser.get(f"{AT}?run=first").text
    assert result["arms"]["steered"]["text"].strip()[:8].replace("'", "&#39;") in page
    saved = browser.post(f"{AT}/models/mine", json=SETUP).json()
    assert saved["model"] == "base+mine"
    asked = {"prompt": SETUP["prompt"], "max_tokens": 12, "temperature": 0.8, "top_p": 0.9, "seed": 5}
    steered = browser.post("/v1/completions", json=asked | {"model": "base+mine"}).json()
    assert steered["choices"][0]["text"] == result["arms"]["steered"]["text"]


@pytest.mark.parametrize("name", ["../x", "..%2Fx", "a/b", "", ".hidden", "x" * 300])
def test_no_name_leaves_the_folder(open_client: Client, own_workspace: Path, name: str, result: dict[str, Any]) -> None:
    before = sorted(own_workspace.rglob("*"))
    browser = open_client(own_workspace)
    body = {"format": "saekit-bench", "version": 1, "setup": SETUP, "result": result}
    assert browser.post(f"{AT}/runs/{name}", json=body).status_code in (400, 404, 405, 307)
    assert browser.get(f"{AT}/runs/{name}.json").status_code in (404, 405, 409)
    assert [path for path in sorted(own_workspace.rglob("*")) if ".lock" not in path.name] == [
        path for path in before if ".lock" not in path.name
    ]


def test_a_file_of_somebody_else_runs_nothing(open_client: Client, own_workspace: Path) -> None:
    browser = open_client(own_workspace)
    hostile = {
        "arms": {"steered": {"text": SCRIPT, "kl": SCRIPT, "tokens": [{"token": SCRIPT, "difference": "x"}, 7]}, "random": 3},
        "warnings": [SCRIPT],
        "command": SCRIPT,
        "snippet": {"a": SCRIPT},
        "fired": "x",
    }
    chips = [{"target": "7", "strength": SCRIPT, "positions": '"><img src=x onerror=alert(1)>'}]
    body = {"format": "saekit-bench", "version": 1, "setup": {"chips": chips, "prompt": SCRIPT}, "result": hostile}
    assert browser.post(f"{AT}/runs/bad", json=body).status_code == 200
    page = browser.get(f"{AT}?run=bad").text
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert browser.get(f"{AT}.json?run=bad").json()["result"]["arms"]["steered"]["kl"] is None


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"chips": []}, 400, "nothing to steer with"),
        ({"chips": [{"target": "99999"}]}, 404, "99999"),
        ({"chips": [{"target": "7", "op": "explode"}]}, 400, "explode"),
        ({"chips": [{"target": "7", "strength": "much"}]}, 400, "much"),
        ({"chips": [{"op": "clamp"}]}, 400, "target"),
        ({"max_tokens": 10**9}, 400, "range"),
        ({"max_tokens": 1000}, 400, "512"),
        ({"max_tokens": True}, 400, "max_tokens"),
        ({"mode": "poem"}, 400, "poem"),
        ({"other": 1}, 400, "other"),
        ({"chats": {"baseline": "x"}}, 400, "chat"),
    ],
)
def test_bad_setups_are_refused(client: TestClient, body: dict[str, Any], status: int, said: str) -> None:
    refused = client.post(f"{AT}/run", json=SETUP | body, headers={"accept": "application/json"})
    assert refused.status_code == status
    assert said in refused.json()["message"] + str(refused.json()["hint"])


def test_read_only(open_client: Client, served_workspace: Path) -> None:
    browser = open_client(served_workspace, read_only=True)
    for path in ("runs/x", "models/x"):
        assert browser.post(f"{AT}/{path}", json=SETUP).status_code == 403
    assert "Save run" not in browser.get(AT).text


def test_what_can_be_added(client: TestClient, ws: Workspace) -> None:
    found = client.get(f"{AT}/find.json", params={"q": "7"}).json()["found"]
    assert (found[0]["target"], found[0]["kind"]) == ("resid_post.2/7", "feature")
    assert client.get(f"{AT}/find.json", params={"q": "head:3.5"}).json()["found"][0]["kind"] == "head"
    words = client.get(f"{AT}/find.json", params={"q": "girl"}).json()["found"]
    assert {each["kind"] for each in words} == {"feature"}
    page = client.get(f"{AT}?f=resid_post.2/9&op=clamp&strength=2max&prompt=Hi")
    assert page.status_code == 200
    view = client.get(f"{AT}.json?f=resid_post.2/9&op=clamp&strength=2max&prompt=Hi").json()
    assert view["setup"]["chips"] == [{"target": "resid_post.2/9", "op": "clamp", "strength": "2max", "positions": ""}]
    assert view["objects"][0]["max"] == pytest.approx(ws.database().feature("resid_post.2", 9).max)
