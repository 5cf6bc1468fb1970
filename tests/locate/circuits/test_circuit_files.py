"""Files, pages and the command of circuits; and the circuit of the induction model, which is known."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from saekit.errors import ConfigError
from saekit.locate.circuits import (
    Circuit,
    EdgeAblator,
    Scoring,
    circuit_dict,
    faithfulness,
    greedy,
    prune,
    read_edges,
    refine,
    score_edges,
    write_circuit,
)
from saekit.report.circuit import render_circuit
from scripts.locate_circuits import induction_task
from tests.kit.html import check
from tests.kit.pages import EVIL

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.tasks import Task
    from tests.kit.commands import Saekit

INDUCTION = {"site:embed->v:0.2", "head:0.2->k:1.0", "head:1.0->site:logits"}
"""The previous-token head 0.2 reads the token before, and the keys of the induction head 1.0 read what it wrote."""


@pytest.fixture(scope="module")
def found(lm: LanguageModel, task: Task) -> Circuit:
    return greedy(score_edges(lm, task, Scoring("eap_ig_inputs", 3), progress=False), 12)


def test_circuits_survive_a_file(found: Circuit, tmp_path: Path) -> None:
    path = write_circuit(found, tmp_path / "circuit.json", {"task": "pairs"})
    edges, obtained = read_edges(path)
    assert obtained == {"task": "pairs"}
    again = Circuit.of(found.wiring, edges, found.spans)
    assert again.edges == found.edges
    data = json.loads(path.read_text())
    refs = {node["ref"] for node in data["nodes"]}
    assert all({each["source"], each["target"]} <= refs for each in data["edges"])
    assert "site:logits" in refs
    with pytest.raises(ConfigError, match="graphml"):
        write_circuit(found, tmp_path / "circuit.txt")
    for damaged in ('{"format": "saekit-circuit"}', '{"edges": []}'):
        path.write_text(damaged)
        with pytest.raises(ConfigError, match="does not hold a circuit"):
            read_edges(path)


def test_graphml_has_every_edge(found: Circuit, tmp_path: Path) -> None:
    root = ElementTree.parse(write_circuit(found, tmp_path / "circuit.graphml")).getroot()
    space = {"g": "http://graphml.graphdrawing.org/xmlns"}
    names = [each.text for each in root.findall(".//g:edge/g:data[@key='edge']", space)]
    assert names == list(map(str, found.edges))
    nodes = {node.get("id") for node in root.findall(".//g:node", space)}
    ends = {edge.get(end) for edge in root.findall(".//g:edge", space) for end in ("source", "target")}
    assert ends <= nodes
    scores = [float(each.text or "nan") for each in root.findall(".//g:edge/g:data[@key='score']", space)]
    assert scores == pytest.approx([found.score(edge) for edge in found.edges])


def test_the_page_draws_every_object_and_escapes_names(found: Circuit) -> None:
    data = circuit_dict(found, {"task": EVIL, "model": "tiny"})
    page = render_circuit(data, {"faithfulness": 0.9, "curve": [{"share": 0.1, "edges": 3, "faithfulness": 0.5}] * 2})
    shown = check(page)
    assert EVIL in shown.all_text and "faithfulness" in shown.all_text
    *edges, boxes = shown.charts[0]["data"]
    assert len(boxes["text"]) == len(data["nodes"])
    assert sum(each["x"].count(None) for each in edges) == len({(each["source"], each["input"]) for each in data["edges"]})
    assert len(shown.charts) == 2


def test_refined_circuits_lose_less(lm: LanguageModel, task: Task) -> None:
    ablator = EdgeAblator(lm, task)
    scores = score_edges(lm, task, progress=False)
    large, small = greedy(scores, 40, "highest"), greedy(scores, 14, "highest")
    refined = refine(ablator, large, 14, progress=False)
    assert 0 < len(refined) <= 14
    assert set(refined.edges) <= set(large.edges)
    f_refined, f_small = faithfulness(ablator, [refined, small])
    assert f_refined > f_small
    with pytest.raises(ConfigError, match="refined"):
        refine(ablator, large, -1)


@pytest.fixture(scope="module")
def induction_lm() -> LanguageModel:
    from saekit.lab.induction_model import induction_path
    from saekit.lm import LanguageModel

    return LanguageModel.load(induction_path(), dtype="float32")


def test_acdc_finds_the_induction_circuit(induction_lm: LanguageModel) -> None:
    ablator = EdgeAblator(induction_lm, induction_task(8))
    circuit = prune(ablator, 0.5, progress=False).circuit
    assert set(map(str, circuit.edges)) >= INDUCTION
    assert len(circuit) <= 8
    assert faithfulness(ablator, [circuit])[0] > 0.95


@pytest.mark.parametrize("method", ["eap_ig_inputs", "eap_ig_activations"])
def test_integrated_gradients_find_the_induction_circuit_where_gradients_fail(induction_lm: LanguageModel, method: str) -> None:
    task = induction_task(8)
    ablator = EdgeAblator(induction_lm, task)
    n = 8
    integrated, plain = (
        greedy(score_edges(induction_lm, task, Scoring(each, 8), progress=False), n, "highest") for each in (method, "eap")
    )
    assert set(map(str, integrated.edges)) >= INDUCTION
    f_integrated, f_plain = faithfulness(ablator, [integrated, plain])
    # The attention of the induction head is saturated, so that its gradient with respect to the keys is nearly zero.
    assert f_integrated > 0.95
    assert f_plain < 0.5


def test_the_command_writes_and_evaluates_circuits(saekit: Saekit, tmp_path: Path) -> None:
    from saekit.lab.induction_model import VOCABULARY, induction_path

    task = induction_task(4, length=6)
    prompts = tmp_path / "task.jsonl"
    words = [VOCABULARY[token] for token in range(len(VOCABULARY))]
    lines = []
    for clean, corrupted, answer, foil in zip(task.clean, task.corrupted, task.answers, task.foils):
        texts = [" ".join(words[token] for token in row[1:]) for row in (clean, corrupted)]
        lines.append({"clean": texts[0], "corrupted": texts[1], "answer": f" {words[answer[0]]}", "foil": f" {words[foil[0]]}"})
    prompts.write_text("\n".join(map(json.dumps, lines)))
    out, page = tmp_path / "circuit.json", tmp_path / "circuit.html"
    common = ("circuit", induction_path(), "--task", prompts)
    result = saekit(*common, "--edges", 8, "--option", "steps=4", "--evaluate", "--json", "--out", out, "--html", page)
    assert result.status == 0, result.stderr
    data = result.json
    assert {each["edge"] for each in data["edges"]} >= INDUCTION
    assert data["obtained"]["evaluation"]["faithfulness"] > 0.9
    assert len(data["obtained"]["evaluation"]["curve"]) == 10
    assert json.loads(out.read_text())["edges"] == data["edges"]
    assert check(page.read_text()).charts
    drawn = tmp_path / "circuit.graphml"
    acdc = ("--method", "acdc", "--option", "tau=.5", "--option", "metric=logit_difference")
    shown = saekit(*common, *acdc, "--out", drawn)
    assert shown.status == 0, shown.stderr
    assert "head:0.2->k:1.0" in shown.stdout
    assert drawn.read_text().startswith("<?xml")
    refined = saekit(*common, "--edges", 5, "--option", "refine=yes", "--option", "positions=last", "--json")
    assert 0 < len(refined.json["edges"]) <= 5
    for wrong in ("ablation=median", "positions=there", "steps=0", "choose=random", "metric=none", "tau=-1", "no=1"):
        assert saekit(*common, "--option", wrong, *(acdc[:2] if wrong.startswith("tau") else ())).status == 2, wrong
    assert saekit(*common, "--method", "none").status == 2
    assert saekit(*common, "--edges", "-3").status == 2
    assert saekit("circuit", induction_path(), "--method", "eap").status == 2
