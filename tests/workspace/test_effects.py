"""What `saekit index` measures of features, in a workspace of an earlier version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_db import FeatureDB
from saekit.errors import InterventionError
from saekit.evaluate.steering.clamp_effects import ClampMeasurement, ClampSettings
from saekit.workspace import Workspace, effects
from tests.kit.commands import Saekit

SITE = "resid_post.2"
SETTINGS = ClampSettings(("In my experience,", "She saw a"), "1norm", tokens=4)


@pytest.fixture(scope="module")
def indexed(old_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Indexed without effects."""
    folder = tmp_path_factory.mktemp("effects") / "ws"
    shutil.copytree(old_workspace, folder)
    Workspace.open(folder).index(SITE, effects=False, progress=False).close()
    return folder


@pytest.fixture
def ws(indexed: Path, tmp_path: Path) -> Workspace:
    shutil.copytree(indexed, tmp_path / "ws")
    return Workspace.open(tmp_path / "ws")


def _scores(database: FeatureDB) -> list[tuple[Any, ...]]:
    return database.sql("select number, output_score, effect from features where output_score is not null order by number").rows


def test_without_effects_the_rest_is_measured(ws: Workspace) -> None:
    with ws.database() as database:
        assert set(database.measurements(SITE)) == {"corpus_labels", "decoder", "input", "logits"} and _scores(database) == []
        record = database.feature(SITE, 3)
        assert record.label == "a label that a person wrote" and record.partners and record.input_score is not None


def test_a_database_is_completed_without_a_new_pass(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the activations are read again")

    monkeypatch.setattr("feature_db.index.indexing.count", refuse)
    with ws.index(SITE, clamps=SETTINGS, progress=False) as database:
        found = _scores(database)
        assert len(found) == 24 and database.measurements(SITE)["effects"]["prompts"] == list(SETTINGS.prompts)
        assert all(0 <= score <= 1 and effect > 0 for _, score, effect in found)
        direct = ClampMeasurement(ws.lm, database.saes()[-1].address, SETTINGS, norms=ws.median_norm)
        wanted = direct.measure([5, 9], database.promoted_tokens(SITE)[[5, 9]])
        np.testing.assert_allclose([found[5][1:], found[9][1:]], np.stack([wanted.output_score_N, wanted.effect_N], 1), rtol=1e-4)
        caused = database.feature(SITE, 9).caused
        assert [each.token_id for each in caused] == [token for token in wanted.tokens_NK[1].tolist() if token >= 0][
            : len(caused)
        ]
        assert database.feature(SITE, 3).label == "a label that a person wrote" and database.sealed(SITE)
    monkeypatch.setattr(ClampMeasurement, "measure", refuse)
    with ws.index(SITE, progress=False) as database:  # what is there is kept, whatever its settings
        assert _scores(database) == found


def test_an_interrupted_measurement_goes_on(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    original = ClampMeasurement.measure

    def measure(self: ClampMeasurement, units: Any, promoted: Any) -> Any:
        if len(measured) == 12:
            raise KeyboardInterrupt
        measured.extend(units)
        return original(self, units, promoted)

    monkeypatch.setattr("saekit.evaluate.steering.clamp_effects._FEATURES", 4)
    monkeypatch.setattr(effects, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(ClampMeasurement, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        ws.index(SITE, clamps=SETTINGS, progress=False)
    (state,) = ws.path.glob("features.sqlite.*.effects.state.npz")
    assert measured == list(range(12))
    measured.clear()
    monkeypatch.setattr(ClampMeasurement, "measure", lambda *given: (measured.extend(given[1]), original(*given))[1])
    with ws.index(SITE, clamps=SETTINGS, progress=False) as database:
        found = _scores(database)
    assert 0 < min(measured) <= 12 and max(measured) == 23 and not state.exists()
    monkeypatch.undo()
    again = Workspace.open(shutil.copytree(ws.path, ws.path.with_name("again")))
    with (
        again.index(SITE, clamps=ClampSettings(SETTINGS.prompts, "2norm"), progress=False),
        again.index(SITE, clamps=SETTINGS, progress=False) as database,
    ):
        np.testing.assert_allclose(_scores(database), found, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("damage", [b"", b"nothing", b"PK\x03\x04"])
def test_a_damaged_state_is_measured_again(ws: Workspace, damage: bytes) -> None:
    stem = "resid_post.2"
    (ws.path / f"features.sqlite.{stem}.effects.state.npz").write_bytes(damage)
    with ws.index(SITE, clamps=SETTINGS, progress=False) as database:
        assert len(_scores(database)) == 24


def test_what_takes_long_is_left_out_and_said(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(effects, "BUDGET", 0.0)
    monkeypatch.setattr("saekit.evaluate.steering.clamp_effects._FEATURES", 2)
    with ws.index(SITE, clamps=SETTINGS, progress=False) as database:
        assert _scores(database) == []
    assert "--effects" in caplog.text and "takes about" in caplog.text
    with ws.index(SITE, effects=True, clamps=SETTINGS, progress=False) as database:
        assert len(_scores(database)) == 24


def test_a_site_that_cannot_be_steered_is_indexed_all_the_same(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise InterventionError("This site cannot be changed.")

    monkeypatch.setattr(ClampMeasurement, "measure", refuse)
    with ws.index(SITE, progress=False) as database:
        assert _scores(database) == [] and database.feature(SITE, 3).input_score is not None
    assert "This site cannot be changed" in caplog.text
    with pytest.raises(InterventionError, match="cannot be changed"):
        ws.index(SITE, effects=True, progress=False)


def test_the_command_line(ws: Workspace, saekit: Saekit, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("In my experience,\n\nShe saw a\n")
    saekit("index", ws.path, "--site", SITE, "--prompts", prompts, "--clamp", "1norm")
    with ws.database() as database:
        assert database.measurements(SITE)["effects"]["prompts"] == list(SETTINGS.prompts)
        best, worst = (_ordered(database)[i] for i in (-1, 0))
    shown = saekit("show", ws.path, f"{SITE}/{best}").stdout
    assert "output score" in shown and "causes" in shown and "alike" in shown and "logits" in shown
    hits = json.loads(saekit("search", ws.path, "the", "--by", "causes", "--sort", "output_score desc", "--json").stdout)
    assert hits
    listed = json.loads(saekit("search", ws.path, "--where", "output_score > 0", "--sort", "output_score desc", "--json").stdout)
    assert listed[0]["feature"] == best
    assert "list features" in saekit("search", ws.path).stderr
    for number, weak in ((best, False), (worst, True)):
        steered = saekit("steer", ws.path, "-f", f"{SITE}/{number}", "Once", "--max-new-tokens", "2", "--no-control").stdout
        assert f"{SITE}/{number}: output score" in steered and ("hardly makes" in steered) == weak
    facts = json.loads(saekit("steer", ws.path, "-f", f"{SITE}/{best}", "Once", "--max-new-tokens", "2", "--json").stdout)
    assert facts["measured"][0]["feature"] == f"feature:{SITE}/{best}" and facts["measured"][0]["above"] > 0.9


def _ordered(database: FeatureDB) -> list[int]:
    return [number for number, _, _ in sorted(_scores(database), key=lambda row: row[1])]


@pytest.mark.parametrize("options", [["--prompts", "nowhere.txt"], ["--prompts", "empty.txt"], ["--clamp", "strong"]])
def test_impossible_settings_are_refused_before_anything_is_done(
    indexed: Path, saekit: Saekit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    result = saekit("index", indexed, *options)
    assert result.status != 0 and "error" in result.stderr
