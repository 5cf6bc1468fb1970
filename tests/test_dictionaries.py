"""Names of dictionaries, their folders, and which one is meant."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saekit.errors import ConfigError, SaekitError, WorkspaceError
from saekit.names.dictionary import MAX_NAME, check_name, folder_name, place_of, stem
from saekit.sae import SAE
from saekit.workspace.dictionaries import Dictionaries
from trainers import plans
from trainers.loop import checkpoints

SITE, TRANSCODER = "mlp_in.3", "mlp_in.3->mlp_out.3"
Make = Callable[..., SAE]


@pytest.mark.parametrize("name", ["small", "arch=topk,l0=16", "a.b_c+d-e", "0", "x" * MAX_NAME, "Checkpoint"])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "..",
            "../x",
            "../../../x",
            "/tmp/x",
            "a/b",
            "a\\b",
            ".hidden",
            "-option",
            "--",
            "a b",
            "é",
            "a\n",
            "\x1b[31m",
        ),
        *("checkpoints", "Checkpoints", "wandb", "x" * (MAX_NAME + 1)),
    ],
)
def test_bad_names(name: str) -> None:
    with pytest.raises(ConfigError):
        check_name(name)


@given(st.text())
def test_no_name_leaves_its_folder(name: str) -> None:
    try:
        check_name(name)
    except ConfigError:
        return
    assert (Path("/a") / name).resolve() == Path("/a") / name


def test_names_that_differ_in_case_alone() -> None:
    assert check_name("small", ["small", "large"]) == "small"
    with pytest.raises(ConfigError, match="upper and lower case"):
        check_name("Small", ["small"])


@pytest.mark.parametrize("place", ["resid_post.3", TRANSCODER, "resid_post.1+resid_post.3@other", "mlp_in.0..3->mlp_out.0..3"])
def test_a_folder_stands_for_its_place(place: str) -> None:
    folder = folder_name(place)
    assert place_of(folder) == place
    assert not set(folder) & set("/\\<>:\"|?* \t\n'$&;")
    assert len(stem(place, "n" * MAX_NAME)) < 255 - len("train-.html")


def _save(sae: SAE, folder: Path, record: dict[str, str] | None = None) -> None:
    sae.save(folder)
    if record is not None:
        (folder / "train.json").write_text(json.dumps({"data": record}))


@pytest.fixture
def saes(make_sae: Make) -> tuple[SAE, SAE]:
    """An SAE and a transcoder that read the same site."""
    sae = make_sae("topk", 4, 8, site=SITE)
    transcoder = make_sae("transcoder", 4, 8, site=SITE, site_out="mlp_out.3", d_out=4)
    return sae, transcoder


def test_an_sae_and_a_transcoder_of_one_site(saes: tuple[SAE, SAE], tmp_path: Path) -> None:
    known = Dictionaries(tmp_path)
    for place, sae in zip((SITE, TRANSCODER), saes):
        _save(sae, known.folder(place))
        _save(sae, known.folder(place, "other"))
    assert known.all() == [(SITE, ""), (SITE, "other"), (TRANSCODER, ""), (TRANSCODER, "other")]
    assert known.find(SITE) == (SITE, "")
    assert known.find(TRANSCODER) == (TRANSCODER, "")
    assert known.find(TRANSCODER, "other") == (TRANSCODER, "other")
    with pytest.raises(WorkspaceError, match="--site"):
        known.find(None, "other")
    assert [str(site) for site in known.sites()] == [SITE]


def test_a_transcoder_alone_is_found_by_what_it_reads(saes: tuple[SAE, SAE], tmp_path: Path) -> None:
    known = Dictionaries(tmp_path)
    _save(saes[1], known.folder(TRANSCODER))
    assert known.find(SITE) == known.find() == known.find(TRANSCODER) == (TRANSCODER, "")


@pytest.mark.parametrize("record", [None, {"site": SITE, "site_out": "mlp_out.3"}])
def test_folders_of_earlier_versions_are_found(saes: tuple[SAE, SAE], tmp_path: Path, record: dict[str, str] | None) -> None:
    """They kept a transcoder where it reads, under any name."""
    known = Dictionaries(tmp_path)
    for name in ("", "small", "checkpoints", "odd name"):
        _save(saes[1], tmp_path / SITE / name, record)
    assert known.all() == [(TRANSCODER, name) for name in ("", "checkpoints", "odd name", "small")]
    assert known.folder(*known.find(SITE, "small")) == tmp_path / SITE / "small"
    assert SAE.load(known.folder(TRANSCODER)).fingerprint() == saes[1].fingerprint()
    _save(saes[0], tmp_path / "mlp_in.2" / "own")
    assert known.folder("mlp_in.2", "own") == tmp_path / "mlp_in.2" / "own"


def test_other_folders_are_ignored(saes: tuple[SAE, SAE], tmp_path: Path) -> None:
    known = Dictionaries(tmp_path)
    _save(saes[0], tmp_path / SITE)
    for folder in ("notes", f"{SITE}/.saekit-0123456789abcdef.partial", ".cache"):
        _save(saes[0], tmp_path / folder)
    assert known.all() == [(SITE, "")]
    (tmp_path / SITE / "damaged").mkdir()
    (tmp_path / SITE / "damaged" / "cfg.json").write_bytes(b"\xff[[[")
    assert known.find(SITE) == (SITE, "")


@pytest.mark.parametrize("keep", ["checkpoints", "../../../x", "../x", "/x", ".x", "a/b", "Small"])
def test_choose_keeps_nothing_under_a_bad_name(make_sae: Make, tmp_path: Path, keep: str) -> None:
    known = Dictionaries(tmp_path / "sae")
    for name, seed in (("", 0), ("small", 1)):
        _save(make_sae("topk", 4, 8, seed=seed, site=SITE), known.folder(SITE, name))
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(SaekitError):
        known.choose("small", keep=keep)
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_clearing_checkpoints_keeps_everything_else(make_sae: Make, tmp_path: Path) -> None:
    """An earlier version may have kept a dictionary in that folder."""
    folder = tmp_path / SITE / "checkpoints"
    _save(make_sae("topk", 4, 8, site=SITE), folder)
    (folder / "step-000000010").mkdir()
    checkpoints.clear(folder)
    assert Dictionaries(tmp_path).all() == [(SITE, "checkpoints")]
    assert not (folder / "step-000000010").exists()


def test_runs_of_a_sweep_get_good_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="upper and lower case"):
        plans({"site": SITE, "runs": [{"name": "a", "l0": 4}, {"name": "A", "l0": 8}]}, tmp_path, lambda _: 16)
    made = plans({"site": [SITE, TRANSCODER], "l0": 4}, tmp_path, lambda _: 16)
    assert [plan.out.name for plan in made] == [SITE, "mlp_in.3--mlp_out.3"]
