"""The commands that ask a language model: autolabel, and score with a judge."""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.chat_server import ChatServer, Messages
from tests.kit.commands import Saekit

KEY = "sk-secret-of-this-test"


def answer(messages: Messages) -> str:
    """A label from the first marked words, or the first texts."""
    text = messages[1]["content"]
    if "ANSWER:" in messages[0]["content"]:
        return "ANSWER: 1, 2"
    return f"LABEL: words like {text.split('<<')[1].split('>>')[0].strip() or 'spaces'}"


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with ChatServer(answer, key=KEY) as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.plan()
    server.requests.clear()
    monkeypatch.setenv("SAEKIT_API_KEY", KEY)


@pytest.fixture(scope="module")
def study(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose labels these tests change."""
    return Path(shutil.copytree(workspace, tmp_path_factory.mktemp("labels") / "ws"))


def asks(server: ChatServer, model: str = "judge") -> list[str]:
    return ["--endpoint", server.url, "--model", model]


def test_labels_failures_and_a_second_run(saekit: Saekit, study: Path, server: ChatServer) -> None:
    chosen = ["--features", "0..5", "--features", "resid_post.2/7"]
    server.plan("ok", "ok", always="prose")
    first = saekit("autolabel", study, *chosen, *asks(server), "--concurrency", 1, "--tries", 2, "--json")
    assert first.status == 0, first.stderr
    facts = first.json
    assert len(facts["labelled"]) == 2 and len(facts["failed"]) == 5 and facts["features"] == 7
    assert all(each["reason"] for each in facts["failed"]) and facts["tokens_in"] > 0 and facts["cost"] is None
    assert len(server.requests) == 2 + 2 * 5
    again = saekit("autolabel", study, *chosen, *asks(server))
    assert again.status == 0 and len(server.requests) == 12  # nothing is asked twice
    assert "2 features have a label of judge" in again.stdout and "5 failed before; --retry-failed" in again.stdout
    assert "no usable answer in 2 tries" in again.stdout
    rows = saekit("sql", study, "select ref, reason, model from failures", "--json").json
    assert sorted(row["ref"] for row in rows) == sorted(each["ref"] for each in facts["failed"])
    server.plan()
    third = saekit("autolabel", study, *chosen, *asks(server), "--retry-failed", "--json").json
    assert len(third["labelled"]) == 5 and not third["failed"] and not third["failed_before"]
    ref = third["labelled"][0]["ref"]
    shown = saekit("show", study, ref, "--json").json
    assert shown["label"] == third["labelled"][0]["label"]
    mine = next(label for label in shown["labels"] if label["method"] == "llm")
    assert mine["model"] == "judge" and mine["prompt"] == facts["prompt"] and mine["created"]


def test_the_key_is_kept_nowhere(saekit: Saekit, study: Path, server: ChatServer) -> None:
    outcome = saekit("autolabel", study, "--features", 8, *asks(server), "--json")
    assert outcome.status == 0 and KEY not in outcome.stdout + outcome.stderr
    for folder, _, names in os.walk(study):
        for name in names:
            assert KEY.encode() not in (Path(folder) / name).read_bytes()


def test_a_wrong_key_is_an_error(saekit: Saekit, study: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAEKIT_API_KEY", "wrong-secret")
    outcome = saekit("autolabel", study, "--features", 20, *asks(server), "--json")
    assert outcome.status == 2 and outcome.json["error"] == "EndpointError"
    assert "refuses the key" in outcome.json["message"] and "wrong-secret" not in outcome.stdout + outcome.stderr
    assert len(server.requests) == 1


def test_a_dry_run_sends_nothing(saekit: Saekit, study: Path, server: ChatServer) -> None:
    outcome = saekit("autolabel", study, *asks(server), "--dry-run", "--price-in", 2, "--price-out", 10, "--json")
    estimate = outcome.json["estimate"]
    assert not server.requests and "labelled" not in outcome.json
    assert estimate["requests"] == outcome.json["features"] > 300
    assert estimate["cost"] == pytest.approx((2 * estimate["tokens_in"] + 10 * estimate["tokens_out"]) / 1e6)
    said = saekit("autolabel", study, *asks(server), "--dry-run", "--price-in", 2)
    assert "at a cost of" in said.stdout and not server.requests


def test_much_needs_a_yes_where_nobody_can_be_asked(
    saekit: Saekit, study: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    limit = ["--ask-above", 0.0001]
    outcome = saekit("autolabel", study, "--features", "30..31", *asks(server), *limit, "--json")
    assert outcome.status == 2 and "--yes" in outcome.json["hint"] and not server.requests
    outcome = saekit("autolabel", study, "--features", "30..31", *asks(server), *limit, "--yes", "--json")
    assert outcome.status == 0 and len(server.requests) == 2


@pytest.mark.parametrize("said", ["n", "y"])
def test_a_terminal_is_asked(saekit: Saekit, study: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(f"{said}\n"))
    outcome = saekit(
        "autolabel", study, "--features", f"32..3{3 if said == 'n' else 2}", *asks(server), "--ask-above", 0, "--json"
    )
    assert "Send about" in outcome.stderr and server.url in outcome.stderr
    if said == "n":
        assert outcome.status == 2 and outcome.json["message"] == "Nothing was sent." and not server.requests
    else:
        assert outcome.status == 0 and len(outcome.json["labelled"]) == len(server.requests) == 1


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "Name one language model"),
        (["--endpoint", "http://localhost/v1"], "--endpoint needs --model"),
        (["--endpoint", "localhost", "--model", "m"], "is no address"),
        (["--endpoint", "http://localhost/v1", "--model", "m", "--local", "x"], "Name one language model"),
        (["--local", "x", "--model", "m"], "--model is the name"),
        (["--endpoint", "http://localhost/v1", "--model", "m", "--price-in", "-1"], "--price-in"),
        (["--endpoint", "http://localhost/v1", "--model", "m", "--prompt", "absent.txt"], "absent.txt"),
        (["--endpoint", "http://localhost/v1", "--model", "m", "--key-env", "NO_SUCH"], "NO_SUCH"),
        (["--endpoint", "http://localhost/v1", "--model", "m", "--features", "@absent"], "absent"),
    ],
)
def test_bad_arguments_are_typed_errors(saekit: Saekit, study: Path, arguments: list[str], what: str) -> None:
    features = [] if "--features" in arguments else ["--features", "40"]
    outcome = saekit("autolabel", study, *features, *arguments, "--json")
    assert outcome.status == 2 and what in outcome.json["message"]


def test_lists_and_prompts(saekit: Saekit, study: Path, server: ChatServer, tmp_path: Path) -> None:
    shown = saekit("autolabel", study, "--show-prompt")
    assert "{examples}" in shown.stdout and "LABEL:" in shown.stdout and not server.requests
    from saekit import Workspace

    with Workspace.open(study).database() as db:
        address = db.saes()[0].dictionary
        db.set_list("mine", [f"feature:{address}/{i}" for i in (50, 51)])
    prompt = tmp_path / "mine.txt"
    prompt.write_text(shown.stdout.replace("You study", "You examine"))
    outcome = saekit("autolabel", study, "--features", "@mine", "--prompt", prompt, *asks(server), "--json").json
    assert [each["ref"] for each in outcome["labelled"]] == [f"feature:{address}/50", f"feature:{address}/51"]
    assert all(request.text.startswith("You examine") for request in server.requests)
    with sqlite3.connect(study / "features.sqlite") as raw:
        stored = raw.execute("SELECT COUNT(*) FROM label WHERE prompt = ?", (outcome["prompt"],)).fetchone()
    assert stored == (2,)


def test_a_local_model_ends_every_feature(saekit: Saekit, study: Path, stories_path: Path) -> None:
    arguments = ["--local", stories_path, "--features", "60..61", "--prompt-examples", 2, "--max-tokens", 12, "--tries", 1]
    outcome = saekit("autolabel", study, *arguments, "--json")
    assert outcome.status == 0, outcome.stderr
    assert len(outcome.json["labelled"]) + len(outcome.json["failed"]) == 2
    assert outcome.json["model"] == stories_path.name


def test_score_asks_the_judge(saekit: Saekit, study: Path, server: ChatServer) -> None:
    chosen = ["--features", "70..71", "--scorer", "detection", "--texts", 4]
    nothing = saekit("score", study, *chosen, *asks(server))
    assert nothing.status == 0 and "No such label" in nothing.stdout and not server.requests
    assert saekit("autolabel", study, "--features", "70..71", *asks(server)).status == 0
    server.requests.clear()
    estimate = saekit("score", study, *chosen, *asks(server), "--dry-run", "--json").json["estimate"]
    rules = saekit("score", study, *chosen, *asks(server), "--method", "words", "--dry-run", "--json").json["estimate"]
    assert not server.requests and estimate["requests"] == 2 * 2 and rules["requests"] > 0
    without = saekit("score", study, *chosen, "--json")
    assert without.status == 2 and "--endpoint" in without.json["hint"]
    done = saekit("score", study, *chosen, *asks(server), "--json")
    assert done.status == 0, done.stderr
    (outcome,) = done.json[0]["scorers"]
    assert outcome["scored"] + sum(outcome["failed"].values()) == 2
    assert 0 < len(server.requests) <= estimate["requests"]
    wrong = saekit("score", study, "--scorer", "rule", *asks(server), "--json")
    assert wrong.status == 2 and "None of the scorers asks" in wrong.json["message"]
