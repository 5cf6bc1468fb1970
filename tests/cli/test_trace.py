"""The command trace: tables, JSON and pages, from a text and from a task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saekit.lab.induction_model import VOCABULARY, induction_path
from tests.kit.commands import Saekit

TEXT = "apple arrow bell bird apple arrow bell"
MODEL = str(induction_path())


def test_a_text_with_its_subject(saekit: Saekit, tmp_path: Path) -> None:
    page = tmp_path / "trace.html"
    arguments = ["--subject", "bell", "--draws", "2", "--html", str(page)]
    found = saekit("trace", MODEL, TEXT, *arguments, "--restore", "states", "--restore", "mlp", "--json")
    assert found.status == 0, found.stderr
    states, mlp = json.loads(found.stdout)
    assert (states["restored"], states["window"]) == ("states", 1)
    assert (mlp["restored"], mlp["window"]) == ("mlp", 10)
    assert states["layers"] == [0, 1]
    words = ["<s>", *TEXT.split()]
    assert [column.split() for column in states["columns"]] == [[str(t), word] for t, word in enumerate(words)]
    # The subject is the last word, so that restoring its state after the last layer restores everything.
    assert states["effects"][1][-1] == pytest.approx(states["clean"] - states["noised"], rel=1e-3)
    assert all(row[:-1] == [0] * 7 for row in states["effects"])
    html = page.read_text()
    assert html.count("<table") == 2
    assert "7 bell" in html
    shown = saekit("trace", MODEL, TEXT, *arguments)
    assert "indirect effect of restoring states" in shown.stdout


def test_a_task_from_a_file(saekit: Saekit, tmp_path: Path) -> None:
    rows = []
    for first, other in (("fish", "flag"), ("goat", "horse")):
        words = ["apple", first, "bell", "apple"]
        rows.append({"clean": " ".join(words), "corrupted": " ".join([words[0], other, *words[2:]]), "answer": f" {first}"})
        rows[-1] |= {"foil": f" {other}", "spans": {"subject": first}}
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = saekit("trace", MODEL, "--task", str(path), "--draws", "2", "--columns", "role", "--json")
    assert found.status == 0, found.stderr
    (facts,) = json.loads(found.stdout)
    assert facts["columns"] == ["before", "last subject", "first after", "last"]
    assert facts["n"] == 2
    assert facts["effects"][0][0] == 0


def test_what_it_refuses(saekit: Saekit) -> None:
    for arguments, message in (
        ([TEXT], "no subject"),
        ([], "either a text or a task"),
        ([TEXT, "--subject", "zebra"], "does not hold 'zebra'"),
        ([TEXT, "--subject", "bell", "--noise", "0"], "hides nothing"),
        ([TEXT, "--subject", "bell", "--restore", "layers"], "has no 'layers'"),
        (["--task", "lab:nothing", "--subject", "bell"], "belong to a text"),
    ):
        found = saekit("trace", MODEL, *arguments)
        assert found.status == 2, arguments
        assert message in found.stderr
    assert "bell" in VOCABULARY
