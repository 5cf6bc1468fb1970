"""SAEs that were trained elsewhere: they have no `train.json` and no log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saekit.report import gather, write_training
from saekit.sae.upload import Target
from saekit.workspace import Workspace, publishing

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
    facts = imported.evaluate(SITE, progress=False)
    assert facts["fvu"] > 0 and not {"fvu_train", "l0_train"} & facts.keys()
    assert "no train.json" in caplog.text
    assert imported.evaluation(SITE)["fvu"] == imported.evaluate(SITE, again=False)["fvu"]


def test_they_are_reported_and_verified(imported: Workspace) -> None:
    from saekit.errors import WorkspaceError
    from saekit.names.site import Site

    assert gather(imported, Site.parse(SITE)).settings["architecture"]
    with pytest.raises(WorkspaceError):
        write_training(imported, SITE)
    assert not imported.check(progress=False).damaged


@pytest.mark.parametrize(
    ("dataset", "shown", "linked"),
    [
        ("NeelNanda/pile-10k", "NeelNanda/pile-10k", ["NeelNanda/pile-10k"]),
        ("/home/me/texts", "texts", None),
        (None, "not known", None),
    ],
)
def test_the_card_has_what_their_files_say(
    imported: Workspace, tmp_path: Path, dataset: str | None, shown: str, linked: list[str] | None
) -> None:
    import yaml

    file = imported.dictionaries.folder(SITE) / "cfg.json"
    cfg = json.loads(file.read_text())
    cfg["metadata"] |= {"context_size": 1024, "prepend_bos": False}
    if dataset is not None:
        cfg["metadata"]["dataset_path"] = dataset
    file.write_text(json.dumps(cfg))
    publishing.write_folder(imported, SITE, "", Target("someone/saes", SITE), tmp_path / "look")
    card = (tmp_path / "look/README.md").read_text()
    training = card.split("## Training")[1]
    assert f"| data | {shown}" in training and "| context | 1,024 tokens |" in training
    assert "| contexts begin with BOS | no |" in training and "/home/me" not in card
    assert yaml.safe_load(card.split("---\n")[1]).get("datasets") == linked
    pushed = json.loads((tmp_path / "look" / SITE / "cfg.json").read_text())["metadata"]
    assert pushed.get("dataset_path") == (None if dataset is None else shown)
