"""A workspace that cannot be written still searches, shows, steers, verifies and evaluates."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.commands import Saekit
from tests.kit.disks import mount

SITE = "resid_post.2"
FEATURE = f"{SITE}/3"


@pytest.fixture
def read_only(ws: Path, tmp_path: Path) -> Iterator[Path]:
    """A workspace on a read-only file system."""
    target = tmp_path / "read-only"
    target.mkdir()
    mount("--bind", str(ws), str(target))
    try:
        mount("-o", "remount,ro,bind", str(target))
        yield target
    finally:
        subprocess.run(["umount", "--lazy", str(target)], check=True)


COMMANDS: list[tuple[object, ...]] = [
    ("search", "{ws}", "dog"),
    ("show", "{ws}", FEATURE),
    ("steer", "{ws}", "--feature", FEATURE, "Once", "--max-new-tokens", 4),
    ("verify", "{ws}"),
    ("eval", "{ws}", "--site", SITE),
]


@pytest.mark.parametrize("kind", ["read_only", "full"])
def test_what_needs_no_writing_works(kind: str, saekit: Saekit, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for command in COMMANDS:
        outcome = saekit(*(str(folder) if word == "{ws}" else word for word in command), "--json")
        assert outcome.status == 0, (command, outcome.stdout, outcome.stderr)
        if command[0] == "eval":
            assert outcome.json["fvu"] > 0 and outcome.json["page"] is None
            assert "is not kept" in outcome.stderr
    writing = [("index", folder), ("train", folder, "--name", "x", "--train-tokens", 1000), ("report", folder, "--site", SITE)]
    for command in writing:
        refused = saekit(*command, "--json")
        assert refused.status == 2 and refused.json["error"] in ("Unwritable", "StorageFull"), (command, refused.stderr)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after.items() <= before.items()
