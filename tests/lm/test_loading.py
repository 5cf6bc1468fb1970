"""Loading from a folder or the hub, what identifies a model, and what goes wrong."""

from __future__ import annotations

import ast
import copy
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from saekit.errors import ConfigError, ModelNotFound, SaekitError, UnsupportedModel
from saekit.lm import LanguageModel
from saekit.lm.fingerprint import _sampled, differs, same_weights, weights_text
from saekit.lm.loading import check_device
from tests.kit.fuzz import mutations

Named = Callable[[str], LanguageModel]


def test_a_local_folder(stories_lm: LanguageModel) -> None:
    assert (stories_lm.n_layers, stories_lm.d_model, stories_lm.n_heads, stories_lm.n_kv_heads) == (5, 64, 8, 4)
    assert (stories_lm.d_head, stories_lm.d_ffn, stories_lm.vocab_size, stories_lm.max_context) == (8, 172, 512, 512)
    assert stories_lm.family.name == "llama"
    assert stories_lm.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in stories_lm.model.parameters())
    assert "stories260k" in repr(stories_lm)


def test_the_type_asked_for(stories_path: Path) -> None:
    for dtype in ("bfloat16", torch.bfloat16):
        lm = LanguageModel.load(stories_path, dtype=dtype, device="cpu")
        assert lm.dtype == torch.bfloat16
        assert lm.run([[1, 403]], logits="last").logits.dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="float99"):
        LanguageModel.load(stories_path, dtype="float99")
    for device in ("cud", "cuda:99"):
        with pytest.raises(ConfigError, match=device):
            LanguageModel.load(stories_path, device=device)


def test_a_device_map(stories_path: Path, stories_lm: LanguageModel) -> None:
    """With some layers kept on disk, the answers and the fingerprint are the same."""
    pytest.importorskip("accelerate")
    names = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", *(f"model.layers.{n}" for n in range(5))]
    places = {name: "disk" if name in ("model.layers.2", "model.layers.3") else "cpu" for name in names}
    lm = LanguageModel.load(stories_path, device_map=places)
    assert next(lm.blocks[2].parameters()).device.type == "meta"
    tokens = [[1, 403, 407, 261]]
    read = ["resid_mid.2", "heads.3", "q.2", "pattern.2"]
    ours, theirs = lm.run(tokens, read=read, logits="all"), stories_lm.run(tokens, read=read, logits="all")
    assert torch.equal(ours.logits, theirs.logits)
    assert all(torch.equal(ours[site], theirs[site]) for site in read)
    again = lm.run(start_at=(lm.record(tokens), 2, None)).logits
    torch.testing.assert_close(again, theirs.logits)
    assert lm.fingerprint()["model"] == stories_lm.fingerprint()["model"]


def test_an_embedding_and_a_head_kept_on_disk(stories_path: Path, stories_lm: LanguageModel) -> None:
    pytest.importorskip("accelerate")
    names = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", *(f"model.layers.{n}" for n in range(5))]
    places = {name: "disk" if name in ("model.embed_tokens", "lm_head") else "cpu" for name in names}
    lm = LanguageModel.load(stories_path, device_map=places)
    assert lm.embedding.weight.device.type == "meta"
    assert lm.device == torch.device("cpu")
    assert torch.equal(lm.W_U, stories_lm.W_U)
    tokens = [[1, 403, 407, 261]]
    assert torch.equal(lm.run(tokens).logits, stories_lm.run(tokens).logits)
    settings = {"max_new_tokens": 4, "positions": "all"}
    assert lm.generate("Once", **settings).tokens == stories_lm.generate("Once", **settings).tokens
    assert lm.fingerprint()["model"] == stories_lm.fingerprint()["model"]


def test_what_identifies_a_model(stories_path: Path, stories_lm: LanguageModel, tmp_path: Path) -> None:
    mark = stories_lm.fingerprint()
    assert mark["name"] == str(stories_path) and mark["revision"] == ""
    assert all(len(mark[key]) == 64 for key in ("model", "tokenizer"))
    copy = shutil.copytree(stories_path, tmp_path / "elsewhere")
    for dtype in ("float32", "bfloat16", "float16", "float64"):
        moved = LanguageModel.load(copy, dtype=dtype)
        assert {key: moved.fingerprint()[key] for key in ("model", "tokenizer")} == {
            key: mark[key] for key in ("model", "tokenizer")
        }
        assert differs(mark, moved.fingerprint()) is None
    in_memory = LanguageModel.attach(stories_lm.model, stories_lm.tokenizer)
    assert in_memory.fingerprint()["model"] == mark["model"]


def test_what_tells_models_apart(stories_path: Path, stories_lm: LanguageModel) -> None:
    mark = stories_lm.fingerprint()
    changed = LanguageModel.load(stories_path)
    changed.model.config.rms_norm_eps = 1e-3
    assert differs(mark, LanguageModel.attach(changed.model, changed.tokenizer).fingerprint()) == "model"
    changed = LanguageModel.load(stories_path)
    changed.model.config.rope_parameters = {**changed.model.config.rope_parameters, "rope_theta": 5e5}
    assert differs(mark, LanguageModel.attach(changed.model, changed.tokenizer).fingerprint()) == "model"
    assert differs(mark, {**mark, "tokenizer": "other"}) == "tokenizer"
    assert differs({key: mark[key] for key in ("model", "tokenizer")}, mark) is None


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mixtral", "opt", "stories"])
def test_weights_are_told_apart_but_not_by_their_rounding(tiny_named: Named, stories_lm: LanguageModel, name: str) -> None:
    lm = stories_lm if name == "stories" else tiny_named(name)
    mark = weights_text(lm)

    def changed(change: Callable[[str, torch.Tensor], torch.Tensor]) -> str:
        other = copy.copy(lm)
        other.model = copy.deepcopy(lm.model)
        with torch.no_grad():
            for each, parameter in other.model.named_parameters():
                parameter.copy_(change(each, parameter))
        return weights_text(other)

    for dtype in (torch.bfloat16, torch.float16):
        assert same_weights(mark, changed(lambda each, w, dtype=dtype: w.to(dtype).float()))
    assert same_weights(changed(lambda each, w: w.bfloat16().float()), changed(lambda each, w: w.half().float()))
    generator = torch.Generator().manual_seed(0)
    random = partial(torch.randn, generator=generator)
    assert not same_weights(mark, changed(lambda each, w: w + 0.05 * w.norm() / w.numel() ** 0.5 * random(w.shape)))
    assert not same_weights(mark, changed(lambda each, w: w * 1.01))

    def rank_one(target: str) -> Callable[[str, torch.Tensor], torch.Tensor]:
        def change(each: str, w: torch.Tensor) -> torch.Tensor:
            if each != target:
                return w
            delta = random(w.shape[0], 1) @ random(1, w.shape[1])
            return w + 0.05 * w.norm() / delta.norm() * delta

        return change

    matrices = [each for each, w in lm.model.named_parameters() if w.ndim == 2]
    assert len(matrices) > 5
    for each in matrices:
        assert not same_weights(mark, changed(rank_one(each))), each


def test_a_fingerprint_looks_at_a_part_of_the_weights() -> None:
    """So that it takes no longer for large matrices: nothing between the samples counts, and there are at most 4096."""
    weight = torch.zeros(10**6)
    assert len(_sampled(weight, 4096)) == 4096
    assert torch.equal(_sampled(torch.arange(10.0), 4096), torch.arange(10.0))


def test_the_tokenizers_mark_outlives_padding(stories_path: Path, stories_lm: LanguageModel) -> None:
    lm = LanguageModel.load(stories_path)
    lm.tokenizer(["a", "long one"], padding=True, truncation=True, max_length=4)
    assert lm.fingerprint()["tokenizer"] == stories_lm.fingerprint()["tokenizer"]
    lm = LanguageModel.load(stories_path)
    lm.tokenizer.add_tokens(["zebra"])
    assert lm.fingerprint()["tokenizer"] != stories_lm.fingerprint()["tokenizer"]


def test_a_hub_name_in_the_cache_needs_no_hub(stories_path: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--someone--stories"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(stories_path, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = "from saekit.lm import LanguageModel; print(LanguageModel.load('someone/stories').fingerprint())"
    settings = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    mark = ast.literal_eval(done.stdout)
    assert (mark["name"], mark["revision"]) == ("someone/stories", commit)
    assert mark["model"] == LanguageModel.load(stories_path).fingerprint()["model"]


# What goes wrong


def test_no_such_folder(tmp_path: Path) -> None:
    for name in (tmp_path / "nowhere", "./nowhere", "../no/where", "~/nowhere/at/all"):
        with pytest.raises(ModelNotFound, match=r"no folder .*nowhere|no folder .*where"):
            LanguageModel.load(name)


def test_folders_without_a_model(stories_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"holds no config\.json"):
        LanguageModel.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        LanguageModel.load(tmp_path)
    with pytest.raises(ModelNotFound, match="is a file"):
        LanguageModel.load(tmp_path / "config.json")

    no_weights = shutil.copytree(stories_path, tmp_path / "no weights", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ModelNotFound, match=r"model\.safetensors"):
        LanguageModel.load(no_weights)
    no_tokenizer = shutil.copytree(stories_path, tmp_path / "no tokenizer", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ModelNotFound, match="tokenizer"):
        LanguageModel.load(no_tokenizer)
    from safetensors.torch import load_file, save_file

    holes = shutil.copytree(stories_path, tmp_path / "holes")
    weights = load_file(holes / "model.safetensors")
    del weights["model.layers.3.mlp.down_proj.weight"]
    save_file(weights, holes / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelNotFound, match=r"lacks weights: model\.layers\.3\.mlp\.down_proj\.weight\."):
        LanguageModel.load(holes)
    cut = shutil.copytree(stories_path, tmp_path / "cut")
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelNotFound):
        LanguageModel.load(cut)
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ModelNotFound):
        LanguageModel.load(encoder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["[" * 100_000 + "]" * 100_000, "[]", "3", '{"a": '])
def test_files_that_hold_something_else(stories_path: Path, tmp_path: Path, name: str, content: str) -> None:
    folder = shutil.copytree(stories_path, tmp_path / "model")
    (folder / name).write_text(content)
    try:
        lm = LanguageModel.load(folder)
    except ModelNotFound as error:
        assert str(folder) in str(error)
    else:  # a generation configuration is optional, so transformers may ignore a damaged one
        assert name == "generation_config.json" and lm.n_layers == 5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_attention_heads", "four"),
        ("num_attention_heads", 0),
        ("hidden_size", -3),
        ("vocab_size", None),
        ("max_position_embeddings", "x"),
        ("bos_token_id", "x"),
        ("num_hidden_layers", 0),
        ("model_type", 3),
    ],
)
def test_configurations_with_impossible_values(stories_path: Path, tmp_path: Path, field: str, value: object) -> None:
    folder = shutil.copytree(stories_path, tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, field: value}))
    with pytest.raises((ModelNotFound, UnsupportedModel), match=str(folder)):
        LanguageModel.load(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_damaged_files_give_typed_errors(stories_path: Path, tmp_path: Path, name: str) -> None:
    """Any damage to a file gives a typed error, or a model that works."""
    folder = shutil.copytree(stories_path, tmp_path / "model")
    whole = (folder / name).read_bytes()
    header = whole[:4000] if name == "model.safetensors" else whole
    for _, damaged in mutations(header, 18, seed=len(name)):
        (folder / name).write_bytes(damaged + whole[len(header) :])
        try:
            lm = LanguageModel.load(folder)
            lm.generate("Once", max_new_tokens=1)
        except SaekitError:
            continue
        assert lm.fingerprint()["model"]


class _RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("ran",))


@pytest.mark.parametrize(
    "content", [b"garbage" * 100, b"", pickle.dumps({"x": 1}), None], ids=["garbage", "empty", "old", "code"]
)
def test_pickled_weights_that_torch_refuses(
    stories_path: Path, tmp_path: Path, content: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(stories_path, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    if content is None:
        torch.save({"weight": _RunsCode()}, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ModelNotFound, match=r"pytorch_model\.bin.*safetensors") as caught:
        LanguageModel.load(folder)
    assert str(caught.value).isprintable() and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("device", ["banana", "", "meta", 3.5, *([] if torch.cuda.is_available() else ["cuda", "cuda:1"])])
def test_devices_that_cannot_be_used_are_refused_before_anything_is_loaded(device: Any) -> None:
    with pytest.raises(ConfigError, match="device"):
        LanguageModel.load("./no-such-folder", device=device)
    with pytest.raises(ConfigError, match="device"):
        check_device(device)


@pytest.mark.parametrize("dtype", ["int8", "bool", "float8_e4m3fn", "single", 3, torch.int32])
def test_types_that_cannot_be_computed_in(dtype: Any) -> None:
    with pytest.raises(ConfigError, match="is not a type to compute in"):
        LanguageModel.load("./no-such-folder", dtype=dtype)


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), None, "gpt2"])
def test_attaching_something_else(model: Any) -> None:
    with pytest.raises(UnsupportedModel, match="not a model of transformers"):
        LanguageModel.attach(model, None)


def test_a_hub_name_in_offline_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound, match=r"not in the cache, and HF_HUB_OFFLINE is set"):
        LanguageModel.load("nobody/nothing-of-the-kind")
    with pytest.raises(ModelNotFound, match="neither a folder nor a hub name"):
        LanguageModel.load("two words")


def test_a_hub_that_refuses_or_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    with socket.socket() as silent:  # takes connections, says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for port in (silent.getsockname()[1], 9):
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
            start = time.monotonic()
            with pytest.raises(ModelNotFound, match=r"the hub (cannot be reached|does not answer)"):
                LanguageModel.load("nobody/nothing-of-the-kind")
            assert time.monotonic() - start < 20


@pytest.mark.parametrize("text", ["", "x", "1 2;3", "1 nan 3", ";", "1"])
def test_damaged_fingerprints_are_other_models(stories_lm: LanguageModel, text: str) -> None:
    here = stories_lm.fingerprint()
    assert differs({**here, "weights": text}, here) == "weights"
    assert not same_weights(text, "5 6;7")
    assert differs({}, here) == differs(here, {}) == "model"
