"""Features of another dictionary than the one at their site are refused, wherever they are asked for."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from feature_db import FeatureDB
from saekit.errors import StoreMismatch, WorkspaceError
from saekit.lm import LanguageModel
from tests.kit.planted import SITE, make_sae

Index = Callable[..., FeatureDB]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "sae" / str(SITE)
    make_sae().save(folder)
    return folder


@pytest.fixture
def indexed(index: Index, folder: Path) -> Path:
    index(source=folder).close()
    return folder.parents[1] / "features.sqlite"


def opened(path: Path) -> FeatureDB:
    return FeatureDB.open(path, lambda site: [path.parent / "sae" / site])


def test_everything_is_refused_for_another_dictionary(indexed: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint is the command that indexes it, with the path as the current folder has it."""
    monkeypatch.chdir(indexed.parents[1])
    workspace = re.escape(indexed.parent.name)
    with opened(indexed) as db:
        assert db.search("happy", 1)[0].feature == 2
        make_sae(9).save(folder)
        for act in (
            lambda: db.search("happy"),
            lambda: db.search("happy", site=SITE),
            lambda: db.feature(SITE, 2),
            lambda: db.stats(SITE, 2),
            lambda: db.densities(SITE),
            lambda: db.vectors(SITE),
            lambda: db.set_label((SITE, 2), "x"),
            lambda: db.set_list("x", [f"feature:{SITE}/2"]),
            lambda: db.check_current(),
        ):
            with pytest.raises(WorkspaceError, match=f"another dictionary.*saekit index {workspace} --site {SITE}`"):
                act()
        make_sae().save(folder)
        assert db.search("happy", 1)[0].feature == 2


def test_the_same_dictionary_is_known_in_a_copy_of_other_times(
    indexed: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the checksums of its files: nothing is loaded."""
    shutil.copytree(tmp_path, tmp_path / "copy")
    for file in (tmp_path / "copy" / "sae" / str(SITE)).iterdir():
        os.utime(file, ns=(1, 1))
    monkeypatch.setattr("saekit.sae.SAE.load", None)
    with opened(tmp_path / "copy" / "features.sqlite") as db:
        assert db.search("happy", 1)[0].feature == 2


def test_weights_count_and_formatting_does_not(indexed: Path, folder: Path) -> None:
    cfg = folder / "cfg.json"
    cfg.write_text(cfg.read_text() + "\n")
    with opened(indexed) as db:
        assert db.search("happy")
    shutil.rmtree(folder)
    with opened(indexed) as db:
        assert db.search("happy"), "a database without its dictionary can be searched"


def test_a_database_without_recorded_files_compares_fingerprints(index: Index, folder: Path) -> None:
    index().close()
    path = folder.parents[1] / "features.sqlite"
    with opened(path) as db:
        assert db.search("happy")
    make_sae(9).save(folder)
    with opened(path) as db, pytest.raises(WorkspaceError):
        db.search("happy")


def test_a_deep_search_takes_only_the_indexed_dictionary(db: FeatureDB, tiny_lm: LanguageModel) -> None:
    """Another one of as many latents is refused."""
    assert db.search("happy", lm=tiny_lm, sae=make_sae())
    with pytest.raises(StoreMismatch, match="not the one whose features are indexed"):
        db.search("happy", lm=tiny_lm, sae=make_sae(9))
