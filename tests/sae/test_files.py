"""Folders without an SAE, damaged folders, unknown names; and saving is all or nothing."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from saekit.errors import ConfigError, SAEFormatError, SAENotFound, StorageFull
from saekit.sae import SAE


@pytest.fixture
def folder(tmp_path: Path, random_sae: Any) -> Path:
    random_sae("jumprelu", 12, 40).save(tmp_path / "sae")
    return tmp_path / "sae"


def _edit(folder: Path, **changes: Any) -> None:
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**cfg, **changes}))


def _edit_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    path = folder / "sae_weights.safetensors"
    tensors = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def test_folders_without_an_sae(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SAEFormatError, match=r"holds no SAE that saekit knows: it holds nothing\. Known: sae-lens"):
        SAE.load(tmp_path / "empty")
    with pytest.raises(SAEFormatError, match=r"Did you mean .*/sae\?"):
        SAE.load(tmp_path)
    (folder / "sae_weights.safetensors").unlink()
    with pytest.raises(SAEFormatError, match=r"it holds cfg\.json\. If it is of sae-lens, .*, it lacks sae_weights\.safetensors"):
        SAE.load(folder)
    (tmp_path / "empty/sae.safetensors").touch()
    with pytest.raises(SAEFormatError, match=r"sparsify .*, it lacks cfg\.json"):
        SAE.load(tmp_path / "empty")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '{"architecture": 3}', "\x00\xff"])
def test_damaged_configurations(text: str, folder: Path) -> None:
    (folder / "cfg.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(SAEFormatError, match="sae"):
        SAE.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_sae": 41}, r"W_enc has shape \(12, 40\), but the configuration says \(12, 41\)"),
        ({"d_in": 13}, "W_enc has shape"),
        ({"architecture": "standard"}, "unexpected threshold"),
        ({"architecture": "gated"}, "missing b_gate, b_mag, r_mag; unexpected b_enc, threshold"),
        ({"architecture": "nonsense"}, "Known: standard"),
        ({"architecture": "jumprelu_transcoder", "d_out": 12}, "cannot subtract b_dec"),
        ({"architecture": "jumprelu_transcoder", "apply_b_dec_to_input": False}, "has no 'd_out'"),
        ({"dtype": "int4"}, "no dtype 'int4'"),
        ({"d_in": "many"}, "no width"),
        ({"normalize_activations": "batch_norm"}, "no normalize_activations 'batch_norm'"),
    ],
)
def test_configurations_that_disagree_with_the_tensors(changes: dict[str, Any], message: str, folder: Path) -> None:
    _edit(folder, **changes)
    with pytest.raises(SAEFormatError, match=message) as error:
        SAE.load(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("k", [0, 41, 2.5, None])
def test_impossible_k(k: Any, folder: Path, random_sae: Any) -> None:
    random_sae("topk", 12, 40).save(folder)
    _edit(folder, k=k)
    with pytest.raises(SAEFormatError, match="k="):
        SAE.load(folder)


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"])
def test_numbers_that_are_not_finite(name: str, folder: Path) -> None:
    tensor = load_file(folder / "sae_weights.safetensors")[name]
    tensor.view(-1)[-1] = float("nan")
    _edit_tensors(folder, **{name: tensor})
    with pytest.raises(SAEFormatError, match=f"{name} holds numbers that are not finite"):
        SAE.load(folder)


def test_an_infinite_threshold_switches_a_latent_off(folder: Path) -> None:
    threshold = load_file(folder / "sae_weights.safetensors")["threshold"]
    threshold[5] = float("inf")
    _edit_tensors(folder, threshold=threshold)
    assert not SAE.load(folder).encode_dense(100 * torch.randn(50, 12))[:, 5].any()


def test_missing_extra_and_truncated_tensors(folder: Path) -> None:
    weights = folder / "sae_weights.safetensors"
    whole = weights.read_bytes()
    _edit_tensors(folder, W_dec=None, W_skip=torch.zeros(12, 12))
    with pytest.raises(SAEFormatError, match="missing W_dec; unexpected W_skip"):
        SAE.load(folder)
    for size in (0, 5, 100, len(whole) - 4):
        weights.write_bytes(whole[:size])
        with pytest.raises(SAEFormatError, match="cannot be read"):
            SAE.load(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no folder 'nowhere'"),
        ("/nowhere/at/all", "no folder '/nowhere/at/all'"),
        ("./a/b", "no folder"),
        ("someone/else", r"someone/else is .*not in the cache, and HF_HUB_OFFLINE is set.*no release 'someone'"),
        ("gpt2-small-resjb/blocks.8.hook_resid_pre", "Did you mean gpt2-small-res-jb"),
        ("gpt2-small-res-jb/blocks.8.hook_resid", "Did you mean blocks.8.hook_resid_pre"),
        ("gemma-scope-2b-pt-res-canonical/layer_20/width_16k/cannonical", "Did you mean layer_20/width_16k/canonical"),
        ("zzzzzz/8", "no release 'zzzzzz'"),
    ],
)
def test_names_that_do_not_exist(name: str, message: str) -> None:
    with pytest.raises(SAENotFound, match=message):
        SAE.load(name)


def test_a_path_is_never_looked_up_as_a_release(folder: Path) -> None:
    with pytest.raises(SAENotFound, match="Give a folder"):
        SAE.load(Path("gpt2-small-res-jb/blocks.8.hook_resid_pre"))
    assert SAE.load(folder / "cfg.json").fingerprint() == SAE.load(folder).fingerprint()  # a file of a folder means the folder


def test_unknown_dtype(folder: Path) -> None:
    with pytest.raises(ConfigError, match="int8"):
        SAE.load(folder, dtype="int8")
    assert SAE.load(folder, dtype=torch.float64).dtype == torch.float64


def test_saving_leaves_other_files_alone_and_nothing_behind(folder: Path, random_sae: Any) -> None:
    (folder / "train.json").write_text("{}")
    random_sae("gated", 12, 40).save(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors", "train.json"]
    assert SAE.load(folder).cfg.architecture == "gated"


def test_saving_is_deterministic(folder: Path, tmp_path: Path, random_sae: Any) -> None:
    random_sae("jumprelu", 12, 40).save(tmp_path / "again")
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("sparsity", [torch.zeros(39), torch.full((40,), -2.0), torch.full((40,), float("nan"))])
def test_sparsity_that_is_no_frequency(sparsity: torch.Tensor, folder: Path, random_sae: Any) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="fractions"):
        random_sae("gated", 12, 40).save(folder, sparsity=sparsity)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_metadata_that_is_no_json(tmp_path: Path, random_sae: Any) -> None:
    with pytest.raises(ConfigError, match="metadata"):
        random_sae("gated", 12, 40, metadata={"when": object()}).save(tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


def test_a_full_disk_keeps_what_was_there(folder: Path, random_sae: Any) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = random_sae("gated", 12, 40)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the operating system refuses longer files, as with a full disk
    try:
        with pytest.raises(StorageFull, match="No room for sae"):
            other.save(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def _save_and_die(sae: SAE, folder: Path, after: int) -> bool:
    """Save in a child process that is killed at its `after`-th change to the file system; False if it survives."""
    child = os.fork()
    if child == 0:
        changes = iter(range(after))

        def die(event: str, _: Any) -> None:
            if event in ("os.rename", "os.remove", "open") and next(changes, None) is None:
                os._exit(9)

        sys.addaudithook(die)
        sae.save(folder, sparsity=torch.zeros(40))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_killed_at_any_step_of_saving(tmp_path: Path, random_sae: Any) -> None:
    """The folder then has the old SAE, the new one, or no SAE: never the weights of one with the settings of the other."""
    old, new = (random_sae("jumprelu", 12, 40, seed=seed, apply_b_dec_to_input=bool(seed)) for seed in (0, 1))
    left = []
    for step in range(20):
        folder = tmp_path / str(step)
        old.save(folder)
        died = _save_and_die(new, folder, step)
        try:
            left.append(SAE.load(folder).fingerprint())
        except SAEFormatError as error:
            assert "holds no SAE" in str(error)
            left.append("none")
        new.save(folder)
        assert SAE.load(folder).fingerprint() == new.fingerprint()
        assert not list(folder.glob(".*"))
        if not died:
            break
    assert set(left) == {old.fingerprint(), "none", new.fingerprint()}
    assert left == sorted(left, key=[old.fingerprint(), "none", new.fingerprint()].index)
