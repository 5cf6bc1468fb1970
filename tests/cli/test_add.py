"""Dictionaries from elsewhere: a folder that sae-lens wrote, with no file of saekit in it, in every command."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saekit.activations.loader.source import is_heldout
from saekit.sae import SAE
from saekit.workspace import Workspace
from tests.kit.commands import Saekit

SITE, D, F = "resid_post.2", 64, 96
HOOK = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def lens() -> Any:
    return pytest.importorskip("sae_lens")


@pytest.fixture(scope="module")
def cached(saekit: Saekit, stories_path: Path, tinystories_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with activations and no dictionary. Tests must leave it as they found it."""
    folder = tmp_path_factory.mktemp("added") / "ws"
    sites = ("--site", SITE, "--site", "mlp_in.2", "--site", "mlp_out.2")
    made = saekit("cache", stories_path, *sites, "--data", tinystories_path, "--tokens", 20_000, "--out", folder, "--json")
    assert made.status == 0, made.stderr
    return folder


@pytest.fixture
def ws(cached: Path, tmp_path: Path) -> Path:
    return shutil.copytree(cached, tmp_path / "ws")


@pytest.fixture(scope="module")
def save(lens: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`save(seed=0, d_in=D, **metadata)`: a folder that sae-lens writes."""

    def make(seed: int = 0, d_in: int = D, **metadata: Any) -> Path:
        facts = {"model_name": "stories260k", "hook_name": HOOK, "context_size": 256, "prepend_bos": True, **metadata}
        cfg = lens.StandardSAEConfig(d_in=d_in, d_sae=F, metadata=lens.saes.sae.SAEMetadata(**facts))
        theirs, generator = lens.StandardSAE(cfg), torch.Generator().manual_seed(seed)
        W_dec = torch.nn.functional.normalize(torch.randn(F, d_in, generator=generator), dim=1)
        for name, value in {
            "W_dec": W_dec,
            "W_enc": W_dec.T,
            "b_enc": torch.full((F,), -0.5),
            "b_dec": torch.zeros(d_in),
        }.items():
            getattr(theirs, name).data = value.clone().contiguous()
        folder = tmp_path_factory.mktemp("lens") / f"sae-{seed}"
        theirs.save_model(folder)
        assert sorted(path.name for path in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
        return folder

    return make


@pytest.fixture(scope="module")
def folder(save: Callable[..., Path]) -> Path:
    return save()


def _contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_folder_of_sae_lens_in_every_command(saekit: Saekit, lens: Any, ws: Path, folder: Path) -> None:
    added = saekit("add", ws, folder, "--name", "lens", "--json")
    assert added.status == 0, added.stderr
    facts = added.json
    assert (facts["site"], facts["name"], facts["dictionary"], facts["new"]) == (SITE, "lens", f"{SITE}@lens", True)
    assert facts["warnings"] == [] and Path(facts["folder"]) == ws / "sae" / SITE / "lens"
    source = json.loads((ws / "sae" / SITE / "lens" / "source.json").read_text())
    assert source["source"] == str(folder) and source["fingerprint"] == SAE.load(folder).fingerprint()

    # sae-lens reads the copy; both give the same codes and reconstructions of the cached activations.
    theirs, workspace = lens.SAE.load_from_disk(ws / "sae" / SITE / "lens"), Workspace.open(ws)
    ours = workspace.sae(f"{SITE}@lens")
    blocks = list(workspace.store().stream([workspace.lm.site(SITE)], batch_tokens=4096))
    acts = torch.cat([block.acts[workspace.lm.site(SITE)] for block in blocks])
    counted = ~torch.cat([block.special_N for block in blocks])
    counted &= ~torch.from_numpy(is_heldout(torch.cat([block.document_N for block in blocks])))  # left out of the index
    with torch.no_grad():
        code_NF = theirs.encode(acts)
        torch.testing.assert_close(ours.encode_dense(acts), code_NF, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours(acts), theirs(acts), rtol=1e-5, atol=1e-5)

    evaluated = saekit("eval", ws, "--name", "lens", "--json")
    assert evaluated.status == 0, evaluated.stderr
    assert evaluated.json["fvu"] > 0 and evaluated.json["dictionary"] == f"{SITE}@lens"
    indexed = saekit("index", ws, "--name", "lens", "--json")
    assert indexed.json == [{"site": SITE, "name": "lens", "features": F}], indexed.stderr
    with workspace.database() as database:
        fires_NF = (code_NF[counted] > 0).double()
        np.testing.assert_allclose(database.densities(f"{SITE}@lens"), fires_NF.mean(0).numpy(), atol=2e-4)
        feature = int(fires_NF.mean(0).argmax())
        assert database.feature((f"{SITE}@lens", feature)).max == pytest.approx(float(code_NF[counted, feature].max()), rel=1e-5)

    hits = saekit("search", ws, "the", "--json")
    assert hits.status == 0 and {hit["dictionary"] for hit in hits.json} == {f"{SITE}@lens"}, hits.stderr
    ref = hits.json[0]["ref"]
    assert saekit("show", ws, ref, "--json").json["name"] == "lens"
    steered = saekit("steer", ws, "-f", f"{ref}:2", "Once upon a time", "--max-new-tokens", 4, "--json")
    assert [each["feature"] for each in steered.json["fired"]] == [ref], steered.stderr
    report = saekit("report", ws, "--name", "lens", "--query", "the", "--json")
    assert report.status == 0 and report.json["dictionary"] == f"{SITE}@lens", report.stderr
    assert str(folder) in Path(report.json["report"]).read_text()
    assert saekit("verify", ws, "--json").json["ok"]

    # Steering adds (c - a) W_dec[f], computed with sae-lens's own encoder.
    lm = workspace.lm
    tokens, _ = lm.encode(["The dog ran home"])
    plain = lm.run(tokens, read=[SITE])[SITE]
    change = workspace.intervention([f"{SITE}@lens/{feature}:3raw"])
    moved = lm.run(tokens, read=[SITE], edits=change)[SITE]
    with torch.no_grad():
        wanted = plain + (3 - theirs.encode(plain)[..., feature])[..., None] * theirs.W_dec[feature]
    touched = (moved - plain).abs().sum(-1) > 0
    assert bool(touched.any())
    torch.testing.assert_close(moved[touched], wanted[touched], rtol=1e-5, atol=1e-5)


def test_it_is_added_once_and_never_over_another(saekit: Saekit, ws: Path, folder: Path, save: Callable[..., Path]) -> None:
    first = saekit("add", ws, folder, "--json")
    assert first.json["dictionary"] == SITE and first.json["new"]
    before = _contents(ws)
    again = saekit("add", ws, folder, "--json")
    assert again.status == 0 and not again.json["new"] and _contents(ws) == before
    other = save(1)
    refused = saekit("add", ws, other, "--json")
    assert (refused.status, refused.json["error"]) == (2, "WorkspaceError") and "--name" in refused.json["hint"]
    assert _contents(ws) == before
    assert saekit("add", ws, other, "--name", "other", "--json").status == 0
    assert Workspace.open(ws).dictionaries.all() == [(SITE, ""), (SITE, "other")]
    assert {name: data for name, data in _contents(ws).items() if name in before and name != "checksums.txt"} == {
        name: data for name, data in before.items() if name != "checksums.txt"
    }


@pytest.mark.parametrize(
    ("changes", "options", "error", "says"),
    [
        ({"d_in": 48}, (), "StoreMismatch", "48 wide at resid_post.2; .* 64 wide"),
        ({"hook_name": "blocks.1.hook_resid_post"}, (), "StoreMismatch", "no activations at resid_post.1.*it has mlp_in.2"),
        ({"hook_name": "blocks.3.hook_resid_pre"}, (), "StoreMismatch", "--site resid_post.2"),
        ({"hook_name": "somewhere.else"}, (), "ConfigError", "does not say which site.*somewhere.else.*--site"),
        ({}, ("--site", "mlp_in.2->mlp_out.2"), "ConfigError", "SAE.*transcoder"),
        ({}, ("--name", "a/b"), "ConfigError", "cannot be the name"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    saekit: Saekit,
    cached: Path,
    save: Callable[..., Path],
    changes: dict[str, Any],
    options: tuple[str, ...],
    error: str,
    says: str,
) -> None:
    before = _contents(cached)
    refused = saekit("add", cached, save(2, **changes), *options, "--json")
    assert (refused.status, refused.json["error"]) == (2, error), refused.stderr
    assert re.search(says, f"{refused.json['message']} {refused.json['hint']}"), refused.json
    assert _contents(cached) == before


def test_the_advice_about_a_site_that_is_not_cached_can_be_pasted(
    saekit: Saekit, cached: Path, save: Callable[..., Path], tmp_path: Path
) -> None:
    source = save(5).rename(tmp_path / "an SAE")
    refused = saekit("add", cached, source, "--site", "resid_post.1", "--json")
    assert refused.json["error"] == "StoreMismatch"
    program, *command = shlex.split(re.findall("`(.*)`", refused.json["hint"])[0])
    assert program == "saekit" and str(source) in command
    done = saekit(*command, "--tokens", 20_000, "--out", tmp_path / "new", "--json")
    assert done.status == 0, done.stderr
    assert Workspace.open(tmp_path / "new").dictionaries.all() == [("resid_post.1", "")]


def test_what_differs_is_said(saekit: Saekit, ws: Path, save: Callable[..., Path]) -> None:
    source = save(3, model_name="gpt2-small", context_size=1024, prepend_bos=False, hook_name="blocks.3.hook_resid_pre")
    added = saekit("add", ws, source, "--site", SITE, "--name", "odd", "--json")
    assert added.status == 0, added.stderr
    said = " ".join(added.json["warnings"])
    for words in ("trained at resid_pre.3", "trained on contexts of 1024", "without BOS"):
        assert words in said and words in added.stderr
    assert Workspace.open(ws).sae(f"{SITE}@odd").cfg.site is not None


def test_fit_without_training(
    saekit: Saekit, folder: Path, save: Callable[..., Path], stories_path: Path, tinystories_path: Path, tmp_path: Path
) -> None:
    command = (
        "fit",
        stories_path,
        "--sae",
        folder,
        "--data",
        tinystories_path,
        "--tokens",
        20_000,
        "--device",
        "cpu",
        "--out",
        tmp_path / "ws",
    )
    refused = saekit(*command, "--latents", 64, "--json")
    assert refused.status == 2 and "n_latents" in refused.json["message"] and not (tmp_path / "ws").exists()
    wide = saekit(*command[:2], "--sae", save(2, d_in=48), *command[4:], "--json")
    assert (wide.status, wide.json["error"]) == (2, "StoreMismatch") and not (tmp_path / "ws").exists()
    made = saekit(*command, "--json")
    assert made.status == 0, made.stderr
    assert set(made.json["sites"]) == {SITE} and made.json["sites"][SITE]["fvu"] > 0
    workspace = Workspace.open(tmp_path / "ws")
    assert (workspace.study.context, workspace.study.sites, workspace.study.bos) == (256, (SITE,), "yes")
    before = _contents(tmp_path / "ws" / "sae")
    again = saekit(*command, "--json")
    assert again.json["sites"][SITE]["fvu"] == made.json["sites"][SITE]["fvu"] and _contents(tmp_path / "ws" / "sae") == before
    hits = saekit("search", tmp_path / "ws", "the", "--json").json
    assert saekit("steer", tmp_path / "ws", "-f", hits[0]["ref"], "Once", "--max-new-tokens", 2, "--json").status == 0

    # Training goes on from it.
    options = ("--train-tokens", 20_000, "--l0", 8, "--arch", "topk", "--name", "tuned", "--json")
    tuned = saekit("train", tmp_path / "ws", "--from", SITE, *options)
    assert tuned.status == 0, tuned.stderr
    assert workspace.sae(f"{SITE}@tuned").cfg.n_latents == F
    described = json.loads((tmp_path / "ws" / "sae" / SITE / "tuned" / "train.json").read_text())["data"]
    assert described["start"] == workspace.sae(SITE).fingerprint()


def test_killed_at_any_step_nothing_is_half_written(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kit.crash_add", str(tmp_path)], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10
