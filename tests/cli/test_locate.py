"""`saekit locate`: methods by name, on models and workspaces."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from saekit.errors import ConfigError
from saekit.lm import LanguageModel
from saekit.locate.data import DataChoice, data_of
from saekit.locate.methods import rank
from saekit.locate.registry import METHODS, Method
from saekit.locate.scored import prepared, ranked
from saekit.objects import Space
from saekit.objects.registry import default_spaces, spaces_of
from saekit.tasks import Contrast, Ranking, Task
from saekit.workspace import Workspace
from tests.kit.commands import Saekit
from tests.kit.html import check


def size(
    lm: LanguageModel,
    data: Task,
    *,
    spaces: list[Space] | None = None,
    metric: Any = None,
    positions: Any = None,
    power: float = 2.0,
    progress: bool = True,
) -> Ranking:
    """The mean of |coefficient| ** power."""
    task, found = prepared(lm, data, metric)
    chosen = default_spaces(lm) if spaces is None else spaces
    refs, rows = [], []
    for space in chosen:
        h = lm.run(task.clean_BT, attention_mask=task.mask_BT, read=[space.site], logits=None)[space.site]
        sizes = space.read(h).flatten(2).reshape(*h.shape[:2], space.n_units, -1).norm(dim=-1) ** power
        for t in range(h.shape[1]) if positions == "each" else [None]:
            refs += [space.ref(unit).at(t) for unit in range(space.n_units)]
            rows.append((sizes.mean(1) if t is None else sizes[:, t]).T)
    return ranked(refs, torch.cat(rows), method="size", lm=lm, data=data, metric=found, spaces=chosen, power=power)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    METHODS.register("size", Method(size, "task", "the size of coefficients"))
    yield
    METHODS.unregister("size")


def test_the_json_is_the_ranking(saekit: Saekit, stories_path: Path, stories_lm: LanguageModel, tmp_path: Path) -> None:
    asked = ("locate", stories_path, "--task", "gen:pronouns", "--prompts", 6, "--method", "size", "--top", 3)
    page, kept = tmp_path / "page.html", tmp_path / "kept.json"
    outcome = saekit(*asked, "--space", "heads", "--option", "power=1", "--json", "--html", page, "--save", kept)
    assert outcome.status == 0, outcome.stderr
    task = data_of(stories_lm, "gen:pronouns", DataChoice(6))
    expected = rank(stories_lm, task, "size", spaces=["heads"], options={"power": 1.0})
    assert [row.keys() for row in outcome.json] == [{"ref", "score", "low", "high", "method", "n", "confirmed"}] * 3
    assert {row["ref"]: row["score"] for row in outcome.json} == pytest.approx(
        {str(ref): s for ref, s in expected.top(3).items()}
    )
    assert outcome.json[0]["method"] == "size" and outcome.json[0]["n"] == 6 and outcome.json[0]["confirmed"] is None
    saved = Ranking.load(kept)
    assert saved.refs == expected.refs and saved.obtained["power"] == 1.0
    html = page.read_text()
    (chart,) = check(html).charts
    assert "head by layer and head" in html.lower() and sum(map(len, chart["data"][0]["z"])) == len(expected)
    assert all(row["ref"] in html for row in outcome.json)
    table = saekit(*asked, "--space", "states", "--positions", "each", "--layers", "0-1", "--html", page)
    assert table.status == 0, table.stderr
    longest = max(map(len, task.clean))  # type: ignore[union-attr]
    assert "site:resid_post.1[" in table.stdout and f"the first 3 of {2 * longest} objects on 6 examples" in table.stdout
    assert "layer and position" in page.read_text()


def test_a_workspace_attaches_its_dictionaries_and_keeps_rankings(saekit: Saekit, workspace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ws"
    shutil.copytree(workspace, folder)
    asked = ("locate", folder, "--task", "gen:pronouns", "--prompts", 4, "--method", "size")
    outcome = saekit(*asked, "--json")
    assert outcome.status == 0, outcome.stderr
    assert {row["ref"].partition(":")[0] for row in outcome.json} <= {"feature", "error"}
    ws = Workspace.open(folder)
    found = ws.ranking("size_gen_pronouns")
    assert len(found) == 513 and str(found.top(1).refs[0]) == outcome.json[0]["ref"]
    assert saekit(*asked, "--space", "neurons", "--save", "mine").status == 0
    assert ws.ranking("mine").obtained["spaces"][0].startswith("neuron")
    facts = saekit("info", folder, "--json").json
    assert [each["file"] for each in facts["rankings"]] == ["rankings/mine.json", "rankings/size_gen_pronouns.json"]
    assert facts["rankings"][0]["method"] == "size"
    assert saekit("verify", folder).status == 0
    content = json.loads((folder / "rankings" / "mine.json").read_text())
    (folder / "rankings" / "mine.json").write_text(json.dumps(content | {"scores": content["scores"][::-1]}))
    damaged = saekit("verify", folder)
    assert damaged.status == 2 and "rankings/mine.json" in damaged.stderr + damaged.stdout
    assert saekit(*asked, "--space", "neurons", "--save", "mine").status == 0
    assert saekit(*asked, "--space", "features", "--save", "features").status == 0
    first = [str(ref) for ref in ws.ranking("features").top(2)]
    steered = saekit("steer", folder, "--feature", "@rankings/features/2", "--op", "ablate", "--json", "Once upon a time")
    assert steered.status == 0, steered.stderr
    assert [each["feature"] for each in steered.json["fired"]] == first
    assert [str(change.target) for change in ws.intervention(ws.ranking("features").top(2), op="ablate").changes] == first
    for name, said in (("@rankings/mine/1", "is no feature"), ("@rankings/min", "Did you mean 'mine'")):
        refused = saekit("steer", folder, "--feature", name, "Once upon a time")
        assert refused.status == 2 and said in " ".join(refused.stderr.split())
    wrong = saekit(*asked, "--save", "../out")
    assert wrong.status == 2 and "cannot be called" in wrong.stderr
    assert not (tmp_path / "out.json").exists()


WRONG = [
    (["--method", "siz"], "Did you mean 'size'"),
    (["--option", "powr=1"], "Did you mean 'power'"),
    (["--option", "power=x"], "not a number"),
    (["--option", "power"], "NAME=VALUE"),
    (["--space", "head"], "Did you mean 'heads'"),
    (["--space", "features"], "no SAE of one site is attached"),
    (["--space", "weights"], "are no activations"),
    (["--layers", "9"], "no layers '9'"),
    (["--metric", "logit"], "logit_difference"),
    (["--metric", "none_such:metric"], "cannot be imported"),
    (["--task", "gen:pronoun"], "Did you mean 'pronouns'"),
    (["--task", "lab:indirect"], "Did you mean 'indirect_object'"),
    (["--task", "lab:indirect_object"], "--first-token"),
    (["--task", "nothing"], "gen:NAME"),
    (["--task", "lab:language_french"], "needs data of the kind task, and is given contrast"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=lambda each: " ".join(each) if isinstance(each, list) else "")
def test_bad_input_is_named_with_the_remedy(saekit: Saekit, stories_path: Path, arguments: list[str], said: str) -> None:
    given = ["--method", "size", "--task", "gen:pronouns", *arguments]
    outcome = saekit("locate", stories_path, *given)
    assert outcome.status == 2 and said in " ".join(outcome.stderr.split())
    assert "Traceback" not in outcome.stderr


def test_files_are_read_and_unaligned_pairs_are_named(saekit: Saekit, stories_path: Path, tmp_path: Path) -> None:
    rows = [{"clean": "Lily went home", "corrupted": "Lily was so big", "answer": " he", "foil": " she"}] * 2
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = saekit("locate", stories_path, "--method", "size", "--task", tmp_path / "mine.jsonl")
    assert outcome.status == 2 and "row 1: clean has" in outcome.stderr and "row 2: clean has" in outcome.stderr
    outcome = saekit("locate", stories_path, "--method", "size")
    assert outcome.status == 2 and "--task" in outcome.stderr


def test_the_list_of_methods(saekit: Saekit) -> None:
    rows = saekit("locate", "--list", "--json").json
    assert {"method": "size", "data": "task", "scores": "the size of coefficients", "options": {"power": 2.0}} in rows
    assert "the size of coefficients" in saekit("locate", "--list").stdout


def test_data_by_name(stories_lm: LanguageModel) -> None:
    task = data_of(stories_lm, "lab:addition", DataChoice(5, first_token=True))
    assert isinstance(task, Task) and task.longest_answer == 1 and len(task) == 5
    contrast = data_of(stories_lm, "lab:language_french", DataChoice(7))
    assert isinstance(contrast, Contrast) and len(contrast) == 7
    with pytest.raises(ConfigError, match="no task 'nothing'"):
        data_of(stories_lm, "nothing")


def test_layers_choose_spaces(stories_lm: LanguageModel) -> None:
    task = data_of(stories_lm, "gen:pronouns", DataChoice(3))
    found = rank(stories_lm, task, "size", spaces=["heads", *spaces_of(stories_lm, "neurons", [4])], layers=[1])
    assert {ref.layer for ref in found if ref.kind == "head"} == {1}  # type: ignore[union-attr]
    assert {ref.layer for ref in found if ref.kind == "neuron"} == {4}  # type: ignore[union-attr]


def test_names_of_methods_are_whole_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from saekit.cli.locate import _list

    monkeypatch.setenv("COLUMNS", "80")
    _list(as_json=False)
    printed = capsys.readouterr().out
    assert all(name in printed for name in METHODS) and max(map(len, printed.splitlines())) <= 80
