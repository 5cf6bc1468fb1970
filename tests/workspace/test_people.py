"""What people write about features on the command line: it is found, used wherever a feature is asked for, and never lost."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from feature_db import Label
from feature_db.labels.evidence import Rule
from feature_db.labels.predicates import PREDICATES
from feature_db.scorers import SCORERS
from saekit.errors import ConfigError, UnknownRef
from saekit.workspace import Workspace
from saekit.workspace.refs import parse
from tests.kit.commands import Saekit, environment

SITE = "resid_post.2"


def texts(saekit: Saekit, ws: Path, feature: str) -> list[str]:
    """The labels by people."""
    (found,) = saekit("label", ws, feature, "--json").json
    return [each["text"] for each in found["labels"] if each["method"] == "human"]


def test_labels(saekit: Saekit, ws: Path) -> None:
    one = f"{SITE}/3"
    before = texts(saekit, ws, one)
    assert saekit("label", ws, one, " royal gardens ", "--json").status == 0
    assert before and texts(saekit, ws, one) == ["royal gardens"]
    saekit("label", ws, one, "parks", "--add")
    saekit("label", ws, one, "parks", "--add")
    assert texts(saekit, ws, one) == ["royal gardens", "parks"]
    (found,) = saekit("label", ws, one, "--json").json
    assert found["labels"][0]["created"].startswith("20") and found["ref"] == f"feature:{one}"
    assert "royal gardens" in saekit("label", ws, one).stdout and "parks" in saekit("show", ws, one).stdout
    assert saekit("search", ws, "garden", "--json").json[0]["ref"] == f"feature:{one}"
    saekit("label", ws, one, "royal gardens", "--remove")
    assert texts(saekit, ws, one) == ["parks"]
    saekit("label", ws, one, "--remove")
    assert texts(saekit, ws, one) == []
    assert saekit("verify", ws).status == 0
    for wrong in (("--add",), ("x", "--add", "--remove")):
        assert saekit("label", ws, one, *wrong, "--json").json["error"] == "ConfigError"
    assert saekit("label", ws, f"{SITE}/999", "x", "--json").json["error"] == "UnknownRef"


def test_notes(saekit: Saekit, ws: Path) -> None:
    one = f"{SITE}/4"
    saekit("note", ws, one, "compare with number seven")
    saekit("note", ws, one, "fires on castles too")
    (found,) = saekit("note", ws, one, "--json").json
    assert [each["text"] for each in found["notes"]] == ["compare with number seven", "fires on castles too"]
    assert "castles" in saekit("note", ws, one).stdout and "castles" in saekit("show", ws, one).stdout
    hits = saekit("search", ws, "castle", "--by", "label", "--json").json
    assert [hit["ref"] for hit in hits] == [f"feature:{one}"] and "note" in hits[0]["why"]
    where = saekit("search", ws, "the", "--where", "note like '%castles%'", "--by", "fires_word", "--json").json
    assert {hit["ref"] for hit in where} <= {f"feature:{one}"}
    assert saekit("sql", ws, "select note from notes", "--json").json[1] == {"note": "fires on castles too"}
    saekit("note", ws, one, "--remove", 1)
    (found,) = saekit("note", ws, one, "--json").json
    assert [each["text"] for each in found["notes"]] == ["fires on castles too"]
    assert saekit("note", ws, one, "--remove", 2, "--json").json["error"] == "UnknownRef"
    assert saekit("note", ws, one, "x", "--remove", 1, "--json").json["error"] == "ConfigError"
    assert saekit("note", ws, one, "  ", "--json").json["error"] == "ConfigError"


def test_an_empty_label_removes_nothing(saekit: Saekit, ws: Path) -> None:
    saekit("list", ws, "kept", "--add", f"{SITE}/5-6")
    (one, two) = saekit("label", ws, "@kept", "mine", "--json").json
    assert one["added"] == two["added"] == 1
    for empty in ("", "  "):
        assert saekit("label", ws, "@kept", empty, "--json").json["error"] == "ConfigError"
        assert saekit("label", ws, "@kept", empty, "--remove", "--json").json["error"] == "ConfigError"
    assert texts(saekit, ws, f"{SITE}/5") == texts(saekit, ws, f"{SITE}/6") == ["mine"]
    absent = saekit("label", ws, "@kept", "another", "--remove")
    assert absent.status and "another" in absent.stderr
    saekit("label", ws, f"{SITE}/6", "another", "--add")
    found = saekit("label", ws, "@kept", "another", "--remove", "--json").json
    assert [each["removed"] for each in found] == [0, 1]
    assert "2 removed" in saekit("label", ws, "@kept", "--remove").stdout
    assert texts(saekit, ws, f"{SITE}/5") == texts(saekit, ws, f"{SITE}/6") == []


def test_a_range_with_an_unknown_feature_changes_nothing(saekit: Saekit, ws: Path) -> None:
    span, last = f"{SITE}/7-999", f"{SITE}/7"
    assert saekit("label", ws, span, "x", "--json").json["error"] == "UnknownRef"
    assert saekit("note", ws, span, "x", "--json").json["error"] == "UnknownRef"
    assert texts(saekit, ws, last) == [] and saekit("note", ws, last, "--json").json[0]["notes"] == []
    saekit("label", ws, last, "x")
    saekit("note", ws, last, "x")
    assert saekit("label", ws, span, "--remove", "--json").json["error"] == "UnknownRef"
    assert saekit("note", ws, span, "--remove", 1, "--json").json["error"] == "UnknownRef"
    assert texts(saekit, ws, last) == ["x"] and len(saekit("note", ws, last, "--json").json[0]["notes"]) == 1
    found = saekit("note", ws, f"{SITE}/7-8", "--remove", 1, "--json").json
    assert [each["removed"] for each in found] == [1, 0]


def test_lists(saekit: Saekit, ws: Path) -> None:
    made = saekit("list", ws, "safety", "--add", f"{SITE}/5", "--add", f"{SITE}/6-7", "--note", "refusals", "--json").json
    assert [(each["ref"], each["note"]) for each in made["features"]] == [(f"feature:{SITE}/{n}", "refusals") for n in (5, 6, 7)]
    saekit("list", ws, "@safety", "--add", f"{SITE}/2", "--remove", f"{SITE}/6")
    shown = saekit("list", ws, "safety", "--json").json["features"]
    assert [each["ref"][-1] for each in shown] == ["5", "7", "2"] and [each["note"] for each in shown] == [
        "refusals",
        "refusals",
        "",
    ]
    assert {"list": "safety", "features": [each["ref"] for each in shown]} in saekit("list", ws, "--json").json
    assert "safety" in saekit("list", ws).stdout and f"{SITE}/7" in saekit("list", ws, "safety").stdout
    assert "safety" in saekit("show", ws, f"{SITE}/7", "--json").json["lists"]
    assert [each["ref"] for each in saekit("show", ws, "@safety", "--json").json] == [each["ref"] for each in shown]
    inside = saekit("search", ws, "the", "--where", "list = 'safety'", "--by", "fires_word", "--by", "promotes", "--json").json
    outside = saekit("search", ws, "the", "--where", "list != 'safety'", "--by", "fires_word", "-n", 100, "--json").json
    assert {hit["ref"] for hit in inside} <= {each["ref"] for each in shown}
    assert outside and not {hit["ref"] for hit in outside} & {each["ref"] for each in shown}
    assert saekit("list", ws, "safety", "--delete").status == 0
    assert saekit("list", ws, "safety", "--json").json["error"] == "UnknownRef"
    for wrong, error in (
        ((ws, "a list", "--add", f"{SITE}/1"), "ConfigError"),
        ((ws, "--add", f"{SITE}/1"), "ConfigError"),
        ((ws, "x", "--note", "about nothing"), "ConfigError"),
        ((ws, "x", "--remove", f"{SITE}/1"), "UnknownRef"),
        ((ws, "x", "--add", f"{SITE}/999"), "UnknownRef"),
        ((ws.parent, "x"), "ConfigError"),
    ):
        assert saekit("list", *wrong, "--json").json["error"] == error
    assert saekit("list", ws.parent, "--json").json["workspaces"][0]["workspace"].endswith("ws")


def test_refs(saekit: Saekit, ws: Path) -> None:
    workspace = Workspace.open(ws)
    with workspace.database() as database:
        database.set_list("mine", [f"feature:{SITE}/8", f"feature:{SITE}/1"])
    named = {
        f"{SITE}/0-2": [0, 1, 2],
        f"{SITE}/0..2": [0, 1, 2],
        "@mine": [8, 1],
        f"{SITE}/3": [3],
        f"feature:{SITE}/3,{SITE}/5, @mine": [3, 5, 8, 1],
        f"{SITE}/1,@mine": [1, 8],
    }
    for text, numbers in named.items():
        assert [ref.unit for ref in workspace.refs(text)] == numbers
        assert parse(workspace, [text, text]) == workspace.refs(text)
    for text in ("@nobody", f"{SITE}/5-2", f"{SITE}/0-99999999", "@", "", f"{SITE}/", "neuron:2/5"):
        with pytest.raises((UnknownRef, ConfigError)):
            workspace.refs(text)
    intervention = workspace.intervention([f"{SITE}/3:2", "@mine:0.5"])
    assert [str(change.target) for change in intervention.changes] == [f"feature:{SITE}/{n}" for n in (3, 8, 1)]
    steered = saekit("steer", ws, "--feature", "@mine:0.5", "Once", "--max-new-tokens", 2, "--no-control", "--json")
    assert steered.status == 0, steered.stderr
    assert [each["feature"] for each in steered.json["fired"]] == [f"feature:{SITE}/{n}" for n in (8, 1)]


PLUGIN = """
from feature_db.labels.predicates import PREDICATES
from feature_db.scorers import SCORERS, Result, Score, Scorer

def measure(subject, labels):
    for label in labels:
        yield Result(label, {"length": Score(len(label.text), 1)})

SCORERS.register("length", Scorer(measure, "length", "How long a label is."))
PREDICATES.register("even", lambda text, rule: text.counted_rows[text.tokens_N[text.counted_rows] % 2 == 0])
"""


def test_a_new_index_keeps_all_of_it_and_scores_need_one(
    saekit: Saekit, ws: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old index counted every document."""
    one = f"{SITE}/3"
    saekit("label", ws, one, "royal gardens")
    saekit("note", ws, one, "as in May")
    saekit("list", ws, "mine", "--add", one, "--note", "best")
    refused = saekit("score", ws, "--site", SITE, "--json").json
    assert refused["error"] == "StoreMismatch" and "saekit index" in refused["hint"]
    kept = [saekit(*words, "--json").json for words in (("note", ws, one), ("list", ws, "mine"))]
    indexed = saekit("index", ws, "--site", SITE, "--heldout", 0.4, "--no-effects", "--json")
    assert indexed.status == 0, indexed.stderr
    assert texts(saekit, ws, one) == ["royal gardens"]
    after = [saekit(*words, "--json").json for words in (("note", ws, one), ("list", ws, "mine"))]
    assert after[0] == kept[0] and after[1]["features"][0]["note"] == "best"
    outcome = saekit("score", ws, "--site", SITE, "--json")
    assert outcome.status == 0, outcome.stderr
    (facts,) = outcome.json
    by_name = {each["scorer"]: each for each in facts["scorers"]}
    assert by_name["rule"]["scored"] > 0 and facts["rules"][-1]["method"] == "best of a feature"
    (again,) = saekit("score", ws, "--site", SITE, "--scorer", "rule", "--json").json
    assert again["scorers"][0] == {**by_name["rule"], "scored": 0, "known": by_name["rule"]["scored"]}
    saekit("list", ws, "mine", "--add", f"{SITE}/1")
    (few,) = saekit("score", ws, "--features", "@mine", "--scorer", "rule", "--again", "--json").json
    assert 0 < few["scorers"][0]["scored"] + sum(few["scorers"][0]["failed"].values()) < 40
    assert "balanced accuracy" in saekit("score", ws, "--site", SITE, "--features", one).stdout
    assert saekit("index", ws, "--site", SITE, "--heldout", 2, "--json").json["error"] == "ConfigError"
    (tmp_path / "plugin_of_scorers.py").write_text(PLUGIN)
    monkeypatch.setenv("SAEKIT_PLUGINS", str(tmp_path / "plugin_of_scorers.py"))
    try:
        with Workspace.open(ws).database() as database:
            database.add_labels(f"feature:{SITE}/1", [Label("mine", "even tokens", rule=Rule("even", ()))])
        scored = saekit("score", ws, "--features", "@mine", "--scorer", "length", "--scorer", "rule", "--json").json
        assert [each["scorer"] for each in scored[0]["scorers"]] == ["length", "rule"]
        (shown,) = (each for each in saekit("show", ws, f"{SITE}/1", "--json").json["labels"] if each["method"] == "mine")
        assert shown["scores"]["length"] == len("even tokens") and shown["intervals"]["length"]["n"] == 1
        assert "balanced_accuracy" in shown["scores"] or scored[0]["scorers"][1]["failed"]
    finally:
        SCORERS.unregister("length")
        PREDICATES.unregister("even")
    assert "Did you mean 'rule'" in saekit("score", ws, "--scorer", "rules", "--json").json["hint"]
    assert saekit("verify", ws).status == 0


WRITE = """
import sys
from saekit.workspace import Workspace
with Workspace.open(sys.argv[1]).database() as database:
    for n in range(10_000):
        database.add_note("feature:resid_post.2/3", f"note {n}")
        database.set_label("feature:resid_post.2/4", f"label {n}")
        print(n, flush=True)
"""


def test_a_kill_loses_nothing_that_was_written(ws: Path) -> None:
    writing = subprocess.Popen([sys.executable, "-c", WRITE, str(ws)], stdout=subprocess.PIPE, text=True, env=environment())
    assert writing.stdout is not None
    last = next(int(line) for line in writing.stdout if int(line) >= 5)
    writing.send_signal(signal.SIGKILL)
    writing.wait()
    copy = shutil.copytree(ws, ws.parent / "copy")
    with Workspace.open(copy).database() as database:
        written = [note.text for note in database.notes(f"feature:{SITE}/3")]
        assert written[: last + 1] == [f"note {n}" for n in range(last + 1)]
        label = database.feature(f"feature:{SITE}/4").label
        assert int(label.removeprefix("label ")) >= last
        assert all("checksum" in remark for remark in database.verify())
