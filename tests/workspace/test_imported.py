"""SAEs that were trained elsewhere: they have no `train.json` and no log."""

from __future__ import annotations

from pathlib import Path

import pytest

from saekit.report import gather, write_training
from saekit.workspace import Workspace

SITE = "resid_post.2"


@pytest.fixture
def imported(ws: Path) -> Workspace:
    """A workspace whose default dictionary was put there by hand."""
    for name in ("train.json", "metrics.jsonl", "timing.jsonl"):
        (ws / "sae" / SITE / name).unlink()
    workspace = Workspace.open(ws)
    workspace.record_checksums([f"sae/{SITE}/{name}" for name in ("train.json", "metrics.jsonl", "timing.jsonl")])
    return workspace


def test_they_are_measured_on_the_default_part_of_the_documents(imported: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    assert imported.evaluate(SITE, progress=False)["fvu"] > 0
    assert "no train.json" in caplog.text
    assert imported.evaluation(SITE)["fvu"] == imported.evaluate(SITE, again=False)["fvu"]


def test_they_are_reported_and_verified(imported: Workspace) -> None:
    from saekit.errors import WorkspaceError
    from saekit.names.site import Site

    assert gather(imported, Site.parse(SITE)).settings["architecture"]
    with pytest.raises(WorkspaceError):
        write_training(imported, SITE)
    assert not imported.check(progress=False).damaged
