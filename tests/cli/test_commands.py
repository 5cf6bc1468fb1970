"""Every command on a real study: exit status, JSON keys, and that what it says is so."""

from __future__ import annotations

import json
import math
import re
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.kit.commands import Saekit
from tests.kit.findable import findable

COMMANDS = ("fit", "cache", "train", "index", "eval", "search", "show", "steer", "verify")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(saekit: Saekit, name: str) -> None:
    outcome = saekit(name, "--help")
    assert outcome.status == 0
    assert f"saekit {name}" in re.sub(r"\s+", " ", outcome.stdout)
    assert "Example" in outcome.stdout
    assert "--json" in outcome.stdout


def test_sae_lens_gives_the_same_outputs(workspace: Path, stories_lm) -> None:  # type: ignore[no-untyped-def]
    import sae_lens
    import torch

    from saekit.sae import SAE

    folder = workspace / "sae" / "resid_post.2"
    theirs, ours = sae_lens.SAE.load_from_disk(folder), SAE.load(folder)
    tokens, mask = stories_lm.encode(["Once upon a time, there was a little dog named Tim. He liked to play in the park."])
    x = stories_lm.run(tokens, attention_mask=mask, read=["resid_post.2"], logits=None)["resid_post.2"].flatten(0, 1)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_dense(x), theirs.encode(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_search_and_show(saekit: Saekit, workspace: Path) -> None:
    word, ref = findable(workspace, "resid_post.2")
    hits = saekit("search", workspace, word, "--json").json
    assert ref in [hit["ref"] for hit in hits]
    assert all({"ref", "feature", "score", "label", "density", "why"} <= hit.keys() for hit in hits)
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    shown = saekit("show", workspace, hits[0]["feature"], "--json").json
    assert {"ref", "label", "density", "max", "mean", "promoted", "suppressed", "examples"} <= shown.keys()
    assert shown["ref"] == hits[0]["ref"]
    assert shown["examples"]
    for example in shown["examples"]:
        assert len(example["tokens"]) == len(example["values"])
        assert 0 < max(example["values"]) <= shown["max"] * (1 + 1e-3)
    by_ref = saekit("show", workspace, hits[0]["ref"], "--json").json
    assert by_ref == shown
    assert saekit("show", workspace, hits[0]["feature"]).status == 0


def test_steer(saekit: Saekit, workspace: Path) -> None:
    feature = findable(workspace, "resid_post.2").ref.rpartition("/")[2]
    arguments = ("steer", workspace, "--feature", f"{feature}:3", "Once upon a time", "One day", "--max-new-tokens", 24)
    result = saekit(*arguments, "--json").json
    assert len(result["baseline"]) == len(result["steered"]) == 2
    assert result["baseline"] != result["steered"]
    assert result["kl"] > 0
    assert all(math.isfinite(result["perplexity"][name]) for name in ("baseline", "steered"))
    assert saekit(*arguments, "--json").json == result
    assert saekit(*arguments).status == 0


def test_a_scale_of_one_changes_nothing(saekit: Saekit, workspace: Path) -> None:
    result = saekit("steer", workspace, "--feature", "7:1", "--op", "scale", "Once upon a time", "--json", "--no-control").json
    assert result["baseline"] == result["steered"]
    assert result["kl"] == pytest.approx(0, abs=1e-6)


def test_verify_finds_a_flipped_bit(saekit: Saekit, workspace: Path, tmp_path: Path) -> None:
    sound = saekit("verify", workspace, "--json")
    assert sound.status == 0, sound.stdout
    copy = tmp_path / "ws"
    shutil.copytree(workspace, copy)
    shard = sorted((copy / "activations").glob("*.h5"))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    outcome = saekit("verify", copy, "--json")
    assert outcome.status == 2
    assert outcome.json["error"] == "StoreCorrupt"
    assert shard.name in outcome.json["message"]


def _rows(database: Path) -> list[str]:
    with sqlite3.connect(database) as connection:
        return list(connection.iterdump())


def test_running_again_changes_nothing(saekit: Saekit, fit_arguments: list[object], workspace: Path) -> None:
    weights = (workspace / "sae" / "resid_post.2" / "sae_weights.safetensors").read_bytes()
    rows = _rows(workspace / "features.sqlite")
    assert saekit(*fit_arguments, "--out", workspace).status == 0
    assert (workspace / "sae" / "resid_post.2" / "sae_weights.safetensors").read_bytes() == weights
    assert _rows(workspace / "features.sqlite") == rows


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("fit", "./no-such-model", "--data", "{data}"), "ModelNotFound"),
        (("fit", "{model}", "--site", "resid_post.9", "--data", "{data}"), "UnknownSite"),
        (("fit", "{model}", "--site", "resid_psot.2", "--data", "{data}"), "UnknownSite"),
        (("fit", "{model}", "--data", "{data}", "--text-field", "body"), "CorpusError"),
        (("fit", "{model}", "--data", "{empty}"), "CorpusError"),
        (("fit", "{model}", "--data", "./no-such-file.jsonl"), "CorpusError"),
        (("fit", "{model}", "--data", "{data}", "--context", 4096), "ContextTooLong"),
        (("fit", "{model}", "--data", "{data}", "--arch", "topkk"), "ConfigError"),
        (("fit", "{model}", "--data", "{data}", "--latents", 64, "--k", 100), "ConfigError"),
        (("fit", "{model}", "--data", "{data}", "--store-dtype", "float12"), "ConfigError"),
        (("fit", "{model}", "--data", "{data}", "--data-seed", -1), "ConfigError"),
        (("fit", "{model}", "--data", "{data}", "--site-out", "mlp_out.2"), "ConfigError"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(
    saekit: Saekit,
    tmp_path: Path,
    stories_path: Path,
    tinystories_path: Path,
    arguments: tuple[object, ...],
    error: str,
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    names = {"model": stories_path, "data": tinystories_path, "empty": empty}
    filled = [argument.format(**names) if isinstance(argument, str) else argument for argument in arguments]
    outcome = saekit(*filled, "--out", tmp_path / "ws", "--json")
    assert outcome.status == 2, outcome.stderr
    assert outcome.json["error"] == error
    assert "Traceback" not in outcome.stderr
    assert not (tmp_path / "ws").exists()


def test_where_nothing_can_be_written(saekit: Saekit, fit_arguments: list[object], workspace: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for command in ((*fit_arguments, "--out", file / "ws"), ("report", workspace, "--page", tmp_path)):
        outcome = saekit(*command, "--json")
        assert (outcome.status, outcome.json["error"]) == (2, "Unwritable"), outcome.stderr
        assert "cannot be written" in outcome.json["message"]
    assert [*tmp_path.iterdir()] == [file]


def test_a_feature_out_of_range(saekit: Saekit, workspace: Path) -> None:
    for arguments in (("show", workspace, 512), ("steer", workspace, "--feature", 512, "Once")):
        outcome = saekit(*arguments, "--json")
        assert outcome.status == 2
        assert outcome.json["error"] == "UnknownRef"
        assert "511" in outcome.json["message"] + str(outcome.json["hint"])


def test_a_workspace_from_a_newer_version(saekit: Saekit, workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "saekit.toml").write_text((workspace / "saekit.toml").read_text().replace("format = 1", "format = 99"))
    outcome = saekit("search", tmp_path, "dog", "--json")
    assert (outcome.status, outcome.json["error"]) == (2, "WorkspaceTooNew")


def test_a_workspace_of_another_study(saekit: Saekit, fit_arguments: list[object], workspace: Path, wikitext_path: Path) -> None:
    changed = list(fit_arguments)
    changed[changed.index("--data") + 1] = wikitext_path
    outcome = saekit(*changed, "--out", workspace, "--json")
    assert (outcome.status, outcome.json["error"]) == (2, "StoreMismatch")
    assert "data" in outcome.json["message"]


def test_a_folder_with_other_things_is_left_alone(saekit: Saekit, fit_arguments: list[object], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    outcome = saekit(*fit_arguments, "--out", tmp_path, "--json")
    assert (outcome.status, outcome.json["error"]) == (2, "WorkspaceError")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_store_of_another_model(saekit: Saekit, workspace: Path, stories_path: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    model, copy = tmp_path / "model", tmp_path / "ws"
    shutil.copytree(stories_path, model)
    (model / "model.safetensors").chmod(0o644)
    weights = load_file(model / "model.safetensors")
    noise = torch.Generator().manual_seed(0)
    changed = {name: w + 0.1 * w.std() * torch.randn(w.shape, generator=noise) for name, w in weights.items()}
    save_file(changed, model / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(workspace, copy)
    study = (copy / "saekit.toml").read_text()
    (copy / "saekit.toml").write_text(study.replace(json.dumps(str(stories_path.resolve())), json.dumps(str(model))))
    outcome = saekit("index", copy, "--json")
    assert (outcome.status, outcome.json["error"]) == (2, "StoreMismatch")
