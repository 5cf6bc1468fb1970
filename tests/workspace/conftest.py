"""A small finished workspace of an earlier version, and the same with checksums of every file."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from saekit.workspace import Workspace
from tests.kit.disks import mount

ARCHIVE = Path(__file__).parents[1] / "kit" / "golden" / "v0.1.0.zip"


@pytest.fixture(scope="session")
def old_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As version 0.1.0 wrote it. Tests must leave it as they found it."""
    folder = tmp_path_factory.mktemp("golden")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith("ws/")])
    return folder / "ws"


@pytest.fixture(scope="session")
def covered(old_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a checksum of every file. Tests must leave it as they found it."""
    folder = tmp_path_factory.mktemp("covered") / "ws"
    shutil.copytree(old_workspace, folder)
    Workspace.open(folder).record_checksums()
    return folder


@pytest.fixture
def ws(covered: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(covered, tmp_path / "ws")
    return tmp_path / "ws"


@pytest.fixture
def full(covered: Path, tmp_path: Path) -> Iterator[Path]:
    """A workspace on a disk without a free byte."""
    target = tmp_path / "full"
    target.mkdir()
    mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", str(target))
    try:
        shutil.copytree(covered, target / "ws")
        filler = os.open(target / "filler", os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match="No space"):
            while True:
                os.write(filler, bytes(4096))
        os.close(filler)
        yield target / "ws"
    finally:
        subprocess.run(["umount", "--lazy", str(target)], check=True)
