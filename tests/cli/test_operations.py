"""`saekit steer` with other operations than clamp."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from saekit.steer.operations import OPERATIONS
from tests.kit.commands import Saekit

PROMPT = "Once upon a time"


def test_an_operation_of_a_plugin(saekit: Saekit, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "plugin_of_operations.py"
    plugin.write_text(
        "from saekit.steer.operations import OPERATIONS, Operation\n"
        "OPERATIONS.register('opposite', Operation(lambda current, amounts: -amounts, order=1, strength='2norm'))\n"
    )
    monkeypatch.setenv("SAEKIT_PLUGINS", str(plugin))
    steer = ("steer", workspace, PROMPT, "--json", "--no-control")
    try:
        found = saekit(*steer, "--feature", "7:3norm", "--op", "opposite").json
        default = saekit(*steer, "--feature", "7", "--op", "opposite").json
    finally:
        OPERATIONS.unregister("opposite")
    assert found["steered"] == saekit(*steer, "--feature", "7:-3norm").json["steered"] != found["baseline"]
    assert default["intervention"]["changes"][0] | {"op": "clamp"} == {
        **saekit(*steer, "--feature", "7:2norm").json["intervention"]["changes"][0]
    }
    refused = saekit("steer", workspace, PROMPT, "--feature", "7", "--op", "opposit")
    assert refused.status == 2 and "no operation 'opposit'" in refused.stderr


def test_ablation_is_at_all_positions_and_reports_where_the_feature_fired(saekit: Saekit, workspace: Path) -> None:
    steer = ("steer", workspace, PROMPT, "One day, a girl", "--feature", "7", "--op", "ablate", "--max-new-tokens", 6)
    everywhere = saekit(*steer, "--positions", "all", "--json").json
    found = saekit(*steer, "--json").json
    assert found == everywhere
    (fired,) = found["fired"]
    assert fired["feature"].endswith("/7") and 0 <= fired["fired"] <= fired["steered"]
    (last,) = saekit(*steer, "--positions", "last", "--json").json["fired"]
    assert last["steered"] == 2 < fired["steered"]
    assert f"fired on {fired['fired']} of {fired['steered']} steered positions" in saekit(*steer).stdout


def test_positions_that_no_prompt_has_are_refused(saekit: Saekit, workspace: Path) -> None:
    steer = ("steer", workspace, "One day", "--feature", "7", "--max-new-tokens", 6)
    for place in ("99", "0,99", "-99", "99|"):
        refused = saekit(*steer, f"--positions={place}", "--json")
        assert (refused.status, refused.json["error"]) == (2, "ConfigError"), refused.stdout
        assert re.search(r"position -?99: the prompt has \d tokens", refused.json["message"]), refused.json
    nowhere = saekit(*steer, "--positions", ",")
    assert nowhere.status == 0 and "no position was steered" in nowhere.stdout, nowhere.stdout + nowhere.stderr
