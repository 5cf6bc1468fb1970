"""`saekit train`: settings as options, and a sweep from its file to its table and page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.kit.commands import Saekit
from tests.kit.html import check
from trainers import TrainConfig

SWEEP = """
latents: 128
tokens: 2e4
batch_size: 512
grid:
  l0: [4, 8]
runs:
  - {arch: topk}
  - {arch: batchtopk}
"""


@pytest.fixture
def ws(workspace: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "ws"
    shutil.copytree(workspace, copy)
    return copy


def test_a_sweep_is_trained_compared_and_extended(saekit: Saekit, ws: Path, tmp_path: Path) -> None:
    file = tmp_path / "shapes.yaml"
    file.write_text(SWEEP)
    outcome = saekit("train", ws, "--sweep", file, "--json")
    assert outcome.status == 0, outcome.stderr
    rows = outcome.json["dictionaries"]
    names = [f"arch={arch},l0={l0}" for l0 in (4, 8) for arch in ("batchtopk", "topk")]
    assert sorted(row["name"] for row in rows) == sorted(names)
    assert [row["l0"] for row in rows] == sorted(row["l0"] for row in rows)
    by_name = {row["name"]: row for row in rows}
    assert by_name["arch=topk,l0=8"]["l0"] == 8
    assert by_name["arch=topk,l0=8"]["fvu"] < by_name["arch=topk,l0=4"]["fvu"] < 1
    assert all(0 < row["ce_recovered"] < 1.01 and row["dead_fraction"] < 1 for row in rows)
    for row in rows:
        better = [other for other in rows if other is not row and other["l0"] <= row["l0"] and other["fvu"] <= row["fvu"]]
        assert row["best"] == (not better)

    page = check(Path(outcome.json["page"]).read_text())
    assert Path(outcome.json["page"]) == ws / "reports" / "sweep-shapes.html"
    for name in (*names, "Sweep shapes", "on the front"):
        assert name in page.all_text
    assert len(page.charts) == 2
    for chart, key in zip(page.charts, ("fvu", "ce_recovered")):
        drawn = [point for curve in chart["data"] for point in zip(curve["x"], curve["y"])]
        assert sorted(drawn) == sorted((row["l0"], row[key]) for row in rows)

    linked = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert sorted(linked) == sorted(f"train-resid_post.2-{name}.html" for name in names)
    for name, other in zip(sorted(names), sorted(linked)):
        page = check((ws / "reports" / other).read_text())
        assert name in page.all_text and "finished" in page.all_text and "comparison shapes" in page.all_text
        assert f"{by_name[name]['ce_recovered']:.2%}" in page.all_text

    folder = ws / "sae" / "resid_post.2"
    before = {path: path.stat().st_mtime_ns for path in [*folder.rglob("*"), *ws.glob("reports/eval-*.json")] if path.is_file()}
    file.write_text(SWEEP.replace("[4, 8]", "[4, 8, 16]"))
    outcome = saekit("train", ws, "--sweep", file)
    assert outcome.status == 0, outcome.stderr
    assert "arch=topk,l0=16" in outcome.stdout and "on the front" in outcome.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before  # neither trained nor measured again
    assert "dictionary" in saekit("eval", ws).stdout  # that of the site itself is still the one


def test_the_page_on_a_training_is_there_at_its_end_and_can_be_written_meanwhile(saekit: Saekit, ws: Path) -> None:
    page = ws / "reports" / "train-resid_post.2.html"
    source = page.read_text()
    settings = ws / "sae" / "resid_post.2"
    assert "finished" in check(source).all_text
    assert "400,000" in check(source).all_text  # tokens
    (settings / "cfg.json").unlink()  # as it is before the end
    log = (settings / "metrics.jsonl").read_text().splitlines(keepends=True)
    half = [line for line in log if json.loads(line)["tokens"] <= 200_000]
    (settings / "metrics.jsonl").write_text("".join(half) + log[-1][:20])
    outcome = saekit("report", ws, "--training", "--json")
    assert outcome.status == 0, outcome.stderr
    assert outcome.json == [{"site": "resid_post.2", "name": "", "report": str(page)}]
    done = json.loads(half[-1])["tokens"] / 400_000
    assert f"not finished: {done:.0%} of 400,000 tokens" in check(page.read_text()).all_text
    refused = saekit("report", ws, "--training", "--site", "resid_post.1", "--json")
    assert (refused.status, refused.json["error"]) == (2, "WorkspaceError")
    assert "resid_post.2" in refused.json["hint"]


def test_options_hold_for_all_and_are_the_settings_of_the_file(saekit: Saekit, ws: Path, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("{latents: 64, tokens: 3000, grid: {l0: [2, 4]}}")
    outcome = saekit("train", ws, "--sweep", file, "--train-tokens", "2e3", "--lr", "3e-3", "--b-dec", "mean", "--json")
    assert outcome.status == 0, outcome.stderr
    for l0 in (2, 4):
        config = TrainConfig.load(ws / "sae" / "resid_post.2" / f"l0={l0}" / "train.json")
        assert (config.tokens, config.lr, config.b_dec, config.n_latents, config.l0) == (2000, 3e-3, "mean", 64, l0)


def test_fine_tuning_makes_another_dictionary_of_the_same_site(saekit: Saekit, ws: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ws / "sae" / "resid_post.2"
    outcome = saekit("train", ws, "--from", source, "--k", 8, "--name", "sparser", "--train-tokens", "2e4", "--json")
    assert outcome.status == 0, outcome.stderr
    page = ws / "reports" / "train-resid_post.2-sparser.html"
    (row,) = outcome.json
    assert row.items() >= {"site": "resid_post.2", "folder": str(source / "sparser"), "report": str(page)}.items()
    assert 0 < row["fvu"] < 1 and 0 < row["epochs"] < 1
    assert "train-resid_post.2.html" in [attributes.get("href") for _, attributes in check(page.read_text()).tags]
    before, after = TrainConfig.load(source / "train.json"), TrainConfig.load(source / "sparser" / "train.json")
    assert (before.l0, after.l0, after.n_latents) == (16, 8, before.n_latents)
    monkeypatch.chdir(ws.parent)
    printed = saekit("train", ws, "--from", source, "--k", 8, "--name", "sparser", "--train-tokens", "2e4").stdout.splitlines()
    assert f"dictionary: {ws.name}/sae/resid_post.2/sparser" in printed, "paths are relative and in one piece"
    assert f"pictures: {ws.name}/reports/{page.name}" in printed and max(map(len, printed)) <= 80
    fvu = [json.loads(line)["fvu"] for line in (source / "sparser" / "metrics.jsonl").read_text().splitlines() if '"fvu"' in line]
    assert max(fvu) < 0.3
    refused = saekit("train", ws, "--from", source, "--k", 8, "--json")
    assert (refused.status, refused.json["error"]) == (2, "StoreMismatch")
    assert "name" in str(refused.json["hint"])


def test_what_was_stopped_is_told_in_the_same_document(saekit: Saekit, ws: Path, tmp_path: Path) -> None:
    stopped = saekit("train", ws, "--latents", 64, "--train-tokens", 20_000, "--lr", 1e30, "--name", "hot", "--json")
    (row,) = stopped.json
    assert stopped.status == 2 and row["error"]["error"] == "Diverged" and "Traceback" not in stopped.stderr
    file = tmp_path / "rates.yaml"
    file.write_text("{latents: 64, tokens: 20_000, runs: [{name: cold, lr: 1e-3}, {name: hotter, lr: 1e30}]}")
    swept = saekit("train", ws, "--sweep", file, "--json")
    assert swept.status == 2
    assert [each["name"] for each in swept.json["dictionaries"]] == ["cold"]
    assert [(each["name"], each["error"]["error"]) for each in swept.json["stopped"]] == [("hotter", "Diverged")]


def _files(folder: Path) -> set[Path]:
    """The files that are written, without locks and the files that SQLite keeps for an open database."""
    passing = (".lock", ".lock-held")
    return {path for path in folder.rglob("*") if path.name not in passing and not path.name.endswith(("-wal", "-shm"))}


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("--sweep", "{sweep}", "--l0", 4), "ConfigError", ["'l0' is given twice"]),
        (("--lr", "fast"), "ConfigError", ["lr='fast'", "a number"]),
        (("--arch", "topkk"), "ConfigError", ["topkk", "topk"]),
        (("--groups", "[1, 2]"), "ConfigError", ["groups"]),
        (("--site", "resid_post.9"), "UnknownSite", ["no layer 9"]),
        (("--sweep", "./no.yaml"), "ConfigError", ["no.yaml"]),
        (("--site", "mlp_in.2"), "UnknownSite", ["mlp_in.2"]),
        (("--device", "cudda"), "ConfigError", ["'cudda'", "Give cpu"]),
        (("--batch-size", "0"), "ConfigError", ["batch_size=0", "at least 1"]),
        (("--l0", "900", "--latents", "512"), "ConfigError", ["l0=900", "l0=512"]),
    ],
)
def test_mistakes_are_named_and_write_nothing(
    saekit: Saekit, workspace: Path, tmp_path: Path, arguments: tuple[object, ...], error: str, words: list[str]
) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("grid: {l0: [2, 4]}")
    before = _files(workspace)
    outcome = saekit("train", workspace, *(str(each).format(sweep=sweep) for each in arguments), "--json")
    assert (outcome.status, outcome.json["error"]) == (2, error), outcome.stderr
    text = json.dumps(outcome.json)
    assert all(word in text for word in words), text
    assert _files(workspace) == before


def test_an_option_that_is_none_is_answered_with_the_nearest(saekit: Saekit, workspace: Path) -> None:
    outcome = saekit("train", workspace, "--latentss", 64)
    assert outcome.status == 2
    assert "--latentss" in outcome.stderr and "--latents" in outcome.stderr.replace("--latentss", "")


def test_every_setting_is_an_option(saekit: Saekit) -> None:
    """Under one of its names: --tokens and --dtype mean something else."""
    import dataclasses

    from trainers.settings.config import ALIASES

    for command in ("train", "fit"):
        shown = saekit(command, "--help").stdout
        for field in dataclasses.fields(TrainConfig):
            names = [field.name, *(alias for alias, name in ALIASES.items() if name == field.name)]
            assert any(f"--{name.replace('_', '-')}" in shown for name in names), field.name
        assert "--latents" in shown and "--train-tokens" in shown and "--train-dtype" in shown
