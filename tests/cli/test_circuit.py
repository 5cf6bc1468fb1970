"""The command circuit: attribution graphs on a real model with random transcoders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from saekit.cli.circuit_methods import CIRCUIT_METHODS
from saekit.sae import SAE
from tests.kit.commands import Saekit

PROMPT = "Once upon a time"
FEW = ["--option", "max_feature_nodes=40"]


@pytest.fixture(scope="module")
def transcoders(make_sae: Callable[..., SAE], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`--dictionary FOLDER` for two layers of the pretrained model."""
    options = []
    for layer in (1, 3):
        folder = tmp_path_factory.mktemp(f"layer{layer}")
        sae = make_sae("skip_transcoder", 64, 100, d_out=64, site=f"mlp_in.{layer}", site_out=f"mlp_out.{layer}", seed=layer)
        sae.save(folder)
        options += ["--dictionary", str(folder)]
    return options


def test_a_graph_is_printed_and_written(saekit: Saekit, stories_path: Path, transcoders: list[str], tmp_path: Path) -> None:
    files = ["--html", str(tmp_path / "graph.html"), "--out", str(tmp_path / "graph.json")]
    outcome = saekit("circuit", str(stories_path), PROMPT, *transcoders, *files, *FEW, "--json")
    assert outcome.status == 0, outcome.stderr
    found = json.loads(outcome.stdout)
    assert found["links"] and all(link["verified"] for link in found["links"])
    assert found["facts"]["feature_nodes"] == 40 and 0 < found["facts"]["replacement_score"] < 1
    assert {node["kind"] for node in found["nodes"]} == {"feature", "error", "token", "logit"}
    assert found["files"] == [str(tmp_path / "graph.json"), str(tmp_path / "graph.html")]
    exported = json.loads((tmp_path / "graph.json").read_text())
    assert len(exported["nodes"]) == len(found["nodes"])
    assert "Once" in (tmp_path / "graph.html").read_text()
    shown = saekit("circuit", str(stories_path), PROMPT, *transcoders, *FEW, "--option", "verify=no", "--option", "nodes=.4")
    assert shown.status == 0 and "replacement score" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([PROMPT, "--option", "node=.5"], "nodes"),
        ([PROMPT, "--option", "nodes=many"], "not a number"),
        ([PROMPT, "--option", "nodes=2"], "not a share"),
        ([PROMPT, "--option", "nodes"], "NAME=VALUE"),
        ([PROMPT, "--method", "attribution"], "attribution_graph"),
        ([], "needs a prompt"),
        ([" "], "empty"),
        ([PROMPT, "--prompts", "3"], "one prompt"),
    ],
)
def test_what_cannot_be_done_is_an_error(
    saekit: Saekit, stories_path: Path, transcoders: list[str], arguments: list[str], said: str
) -> None:
    outcome = saekit("circuit", str(stories_path), *arguments, *transcoders)
    assert outcome.status and said in outcome.stderr


def test_a_format_that_does_not_exist_writes_nothing(
    saekit: Saekit, stories_path: Path, transcoders: list[str], tmp_path: Path
) -> None:
    fast = ["--option", "verify=no", "--option", "max_feature_nodes=5"]
    path = tmp_path / "g"
    outcome = saekit("circuit", str(stories_path), PROMPT, *transcoders, *fast, "--out", str(path), "--format", "dot")
    assert outcome.status and "graphml" in outcome.stderr and not path.exists()


def test_without_transcoders_the_error_says_how_to_train_some(saekit: Saekit, stories_path: Path) -> None:
    outcome = saekit("circuit", str(stories_path), PROMPT)
    assert outcome.status and "saekit fit" in outcome.stderr


def test_methods_are_listed(saekit: Saekit) -> None:
    outcome = saekit("circuit", "--list", "--json")
    assert outcome.status == 0 and "attribution_graph" in {row["method"] for row in json.loads(outcome.stdout)}


def test_a_plugin_adds_a_method_with_a_format(
    saekit: Saekit, stories_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "words_plugin.py"
    plugin.write_text(
        "from saekit.cli.circuit_methods import CIRCUIT_METHODS, CircuitFound, CircuitMethod\n"
        "def words(subject, request):\n"
        "    rows = [{'word': word} for word in request.prompt.split()]\n"
        "    return CircuitFound({'words': len(rows)}, rows, (), {'text': lambda: request.prompt})\n"
        "CIRCUIT_METHODS.register('words', CircuitMethod(words, 'prompt', 'The words of the prompt.'))\n"
    )
    monkeypatch.setenv("SAEKIT_PLUGINS", str(plugin))
    out = tmp_path / "words.txt"
    try:
        outcome = saekit("circuit", str(stories_path), PROMPT, "--method", "words", "--out", str(out), "--json")
        assert outcome.status == 0 and outcome.json["words"] == 4 and out.read_text() == PROMPT
    finally:
        CIRCUIT_METHODS.unregister("words")


def test_the_prompts_of_a_task_are_chosen_as_for_locate(saekit: Saekit, tmp_path: Path) -> None:
    outcome = saekit("circuit", "lab", "--task", "lab:induction", "--method", "eap", "--prompts", 3, "--json")
    assert outcome.status == 0 and outcome.json["obtained"]["prompts"] == 3
    assert saekit("circuit", "lab", "--task", "lab:induction", "--prompts", 0).status


def test_names_of_methods_and_of_their_functions_are_spelled_alike(saekit: Saekit) -> None:
    for command in ("circuit", "locate"):
        names = {row["method"] for row in saekit(command, "--list", "--json").json}
        assert "eap_ig_inputs" in names and all(name.isidentifier() for name in names)


TASK = ["--task", "lab:induction", "--prompts", 2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "acdc", "--edges", 4], "no option 'edges'"),
        (["--method", "eap", "--option", "steps=4"], "no option 'steps'"),
        (["--method", "eap", "--option", "tau=4"], "no option 'tau'"),
        (["--metric", "nowhere:nothing"], "cannot be imported"),
        ([PROMPT], "either a prompt or a task"),
        ([PROMPT, "--method", "attribution_graph"], "either a prompt or a task"),
    ],
)
def test_an_option_of_another_method_is_refused(saekit: Saekit, arguments: list[object], said: str) -> None:
    outcome = saekit("circuit", "lab", *TASK, *arguments)
    assert outcome.status == 2 and said in outcome.stderr


def test_a_metric_is_given_as_for_locate(saekit: Saekit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "largest_logit.py").write_text("def largest(logits):\n    return logits[:, -1].max(-1).values\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = saekit("circuit", "lab", *TASK, "--method", "eap", "--metric", "largest_logit:largest", "--json")
    assert own.status == 0 and own.json["obtained"]["metric"] == "largest_logit:largest"
    known = saekit("circuit", "lab", *TASK, "--method", "eap", "--metric", "probability", "--json")
    assert known.json["obtained"]["metric"] == "probability" and known.json["edges"] != own.json["edges"]
