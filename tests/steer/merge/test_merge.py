"""Files, memory, kills and refusals."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from saekit.errors import ConfigError, MergeError, ModelNotFound, SaekitError, Unwritable
from saekit.lm import LanguageModel
from saekit.steer.merge import MERGES, MergeSettings, merge_models, merged_delta
from saekit.steer.merge.checkpoint import Checkpoint
from saekit.steer.merge.job import Job, Piece
from saekit.steer.weights import WeightDelta
from tests.kit.crash import die_at, killed
from tests.kit.merging import Family, changed, rounded, save, weights
from tests.kit.tiny import make_lm

TEXTS = [[0, 5, 9, 12, 7], [0, 30, 31, 8]]


@pytest.mark.parametrize("method", [name for name in MERGES if name != "slerp"])
def test_models_equal_to_the_base_change_no_bit(family: Family, tmp_path: Path, method: str) -> None:
    base = save(rounded(), tmp_path / "base")
    raw = load_file(base / "model.safetensors")
    raw["model.norm.weight"][:4] = -0.0
    save_file(raw, base / "model.safetensors", {"format": "pt"})
    texts = {"none": (), "shared": (TEXTS,), "each": (TEXTS, TEXTS)}[MERGES[method].texts]
    report = merge_models([base, base], tmp_path / "m", base=base, settings=MergeSettings(method, texts=texts))
    found = load_file(tmp_path / "m" / "model.safetensors")
    assert all(torch.equal(raw[name].view(torch.int32), found[name].view(torch.int32)) for name in raw)
    assert report.norm == 0 and report.conflicts == 0 and report.cosines[0][1] is None


def test_the_result_is_a_model_folder_of_the_same_files(family: Family, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "merged"
    report = merge_models(family.models, out, base=family.base, settings=MergeSettings("ties"))
    names = {path.name for path in family.base.iterdir()}
    assert {path.name for path in out.iterdir()} == names | {"merge.json"}
    assert json.loads((out / "merge.json").read_text())["method"] == "ties"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == json.loads((family.base / "model.safetensors.index.json").read_text())["weight_map"]
    model, found = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(found.values())
    assert AutoTokenizer.from_pretrained(out).get_vocab() == make_lm().text.tokenizer.get_vocab()
    state = model.state_dict()
    assert all(torch.equal(state[name].double(), tensor) for name, tensor in weights(out).items())
    assert report.parameters == sum(each.numel() for each in weights(family.base).values())


def test_memory_is_a_few_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three models of 32 tensors in 4 files each, a few tensors are alive at a time: those of one or two pieces."""
    n, size = 32, 2**10
    for number, folder in enumerate(("base", "a", "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text('{"model_type": "llama"}')
        random = torch.Generator().manual_seed(number)
        where = {}
        for shard in range(4):
            parts = {f"layers.{i}.w": torch.randn(size, generator=random) for i in range(shard * n // 4, (shard + 1) * n // 4)}
            save_file(parts, tmp_path / folder / f"model-{shard}.safetensors")
            where |= dict.fromkeys(parts, f"model-{shard}.safetensors")
        (tmp_path / folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    read_plain, piece_plain = Checkpoint.read, Job.piece
    tensors: list[weakref.ref[Tensor]] = []
    pieces: list[weakref.ref[Piece]] = []
    alive: list[tuple[int, int]] = []

    def read(self: Checkpoint, name: str) -> Tensor:
        alive.append((sum(each() is not None for each in tensors), sum(each() is not None for each in pieces)))
        found = read_plain(self, name)
        tensors.append(weakref.ref(found))
        return found

    def piece(self: Job, name: str) -> Piece:
        found = piece_plain(self, name)
        pieces.append(weakref.ref(found))
        tensors.extend(map(weakref.ref, found.deltas))
        return found

    monkeypatch.setattr(Checkpoint, "read", read)
    monkeypatch.setattr(Job, "piece", piece)
    merge_models([tmp_path / "a", tmp_path / "b"], tmp_path / "m", base=tmp_path / "base", settings=MergeSettings("ties"))
    assert len(alive) == 3 * 3 * n and len(pieces) == 3 * n  # two passes for the thresholds, one to write
    assert max(few for few, _ in alive) <= 8 and max(few for _, few in alive) <= 1


def test_a_kill_leaves_the_whole_folder_or_none(family: Family, tmp_path: Path) -> None:
    expected = weights_of(family, tmp_path / "whole")
    step, seen = 1, set()
    while True:
        out = tmp_path / f"at{step}" / "merged"

        def work(out: Path = out, step: int = step) -> None:
            die_at(step)()
            weights_of(family, out)

        died = killed(work)
        seen.add(out.exists())
        if out.exists():
            assert {name: list(tensor.shape) for name, tensor in weights(out).items()} == {
                name: list(tensor.shape) for name, tensor in expected.items()
            }
            assert all(torch.equal(weights(out)[name], tensor) for name, tensor in expected.items())
            assert (out / "merge.json").exists() and (out / "config.json").exists()
        weights_of(family, out.with_name("again"))  # what the kill left is in nobody's way
        if not died:
            break
        step += 3
    assert seen == {True, False}


def weights_of(family: Family, out: Path) -> dict[str, Tensor]:
    merge_models(family.models, out, base=family.base, settings=MergeSettings("arithmetic"))
    return weights(out)


def test_number_formats(family: Family, tmp_path: Path) -> None:
    """A model in bfloat16 with the weights of the base has an empty task vector; results take the wider format."""
    narrow = rounded()
    narrow.model.to(torch.bfloat16)
    save(narrow, tmp_path / "narrow")
    report = merge_models([tmp_path / "narrow"], tmp_path / "m", base=family.base, settings=MergeSettings("arithmetic"))
    assert report.norm == 0 and "bfloat16 where the base is in float32" in report.remarks[0]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "m").dtype == torch.float32
    merge_models([family.models[0]], tmp_path / "n", base=tmp_path / "narrow", settings=MergeSettings("arithmetic"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "n")
    assert model.dtype == torch.float32
    assert all(torch.equal(model.state_dict()[name].double(), each) for name, each in weights(family.models[0]).items())


def test_tied_weights_and_whole_numbers(tmp_path: Path) -> None:
    for number, folder in enumerate(("base", "a")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text('{"model_type": "gpt2"}')
        tensors = {"h.0.w": torch.full((2, 2), float(number)), "h.0.mask": torch.ones(2, dtype=torch.bool)}
        save_file(tensors, tmp_path / folder / "model.safetensors")
    report = merge_models([tmp_path / "a"], tmp_path / "m", base=tmp_path / "base", settings=MergeSettings("arithmetic"))
    found = load_file(tmp_path / "m" / "model.safetensors")
    assert found["h.0.mask"].dtype == torch.bool and found["h.0.w"].eq(1).all()
    assert "no tokenizer" in report.remarks[0] and report.layers[0]["layer"] == 0
    save_file({**found, "h.0.mask": torch.zeros(2, dtype=torch.bool)}, tmp_path / "a" / "model.safetensors")
    with pytest.raises(MergeError, match="whole numbers that differ"):
        merge_models([tmp_path / "a"], tmp_path / "n", base=tmp_path / "base", settings=MergeSettings("arithmetic"))
    assert not (tmp_path / "n").exists()


def test_models_that_do_not_fit_are_refused(family: Family, tmp_path: Path) -> None:
    def refused(match: str, error: type[SaekitError] = MergeError, **edit: Any) -> None:
        other = tmp_path / match.replace(" ", "_")
        shutil.copytree(family.models[0], other)
        edit["edit"](other)
        with pytest.raises(error, match=match):
            merge_models([other], tmp_path / "m", base=family.base, settings=MergeSettings("arithmetic"))
        assert not (tmp_path / "m").exists()

    def config(**values: Any) -> Any:
        def edit(folder: Path) -> None:
            path = folder / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

        return edit

    def tensor(name: str, value: Any) -> Any:
        def edit(folder: Path) -> None:
            found = load_file(folder / "model.safetensors")
            found[name] = value(found.pop(name)) if name in found else value
            save_file({key: each for key, each in found.items() if each is not None}, folder / "model.safetensors")

        return edit

    refused("another architecture", edit=config(model_type="mistral"))
    refused("num_attention_heads", edit=config(num_attention_heads=8))
    refused("rms_norm_eps", edit=config(rms_norm_eps=0.1))
    refused("quantised", edit=config(quantization_config={"quant_method": "gptq"}))
    refused("lacks the tensor model.norm.weight", edit=tensor("model.norm.weight", lambda _: None))
    refused("has the shape", edit=tensor("lm_head.weight", lambda each: each[:-1].contiguous()))
    refused("NaN or infinite", edit=tensor("lm_head.weight", lambda each: each / 0))

    def other_words(folder: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(path.read_text().replace('"w59"', '"w60"'))

    refused("different vocabularies", edit=other_words)
    refused("cannot be read", ModelNotFound, edit=lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 20))
    refused("no weights in safetensors", edit=lambda folder: (folder / "model.safetensors").unlink())

    def adapter(folder: Path) -> None:
        (folder / "config.json").rename(folder / "adapter_config.json")

    refused("PEFT adapter", edit=adapter)


def test_settings_that_do_not_fit_are_refused(family: Family, tmp_path: Path) -> None:
    def refused(match: str, error: type[SaekitError] = ConfigError, base: Path | None = family.base, **settings: Any) -> None:
        with pytest.raises(error, match=match):
            merge_models(family.models, tmp_path / "m", base=base, settings=MergeSettings(**settings))
        assert not (tmp_path / "m").exists()

    refused("no method of merging 'tie'", method="tie")
    refused("needs the base", base=None, method="ties")
    refused("has no option 'drop'", method="ties", options={"drop": 0.5})
    refused("density", method="ties", options={"density": 0})
    refused("density", method="ties", options={"density": "half"})
    refused("do not fit 2 models", method="ties", weights=(1.0,))
    refused("do not fit 2 models", method="ties", weights=(1.0, float("nan")))
    refused("sum to zero", method="linear", weights=(1.0, -1.0))
    refused("texts for each model", method="sens", texts=(TEXTS,))
    refused("no texts", method="ties", texts=(TEXTS,))
    refused("text of two tokens", method="sens", texts=(TEXTS, [[0]]))
    refused("no ordinary token", method="aim", texts=([[0]],))
    with pytest.raises(ConfigError, match="missing"):
        merge_models([], tmp_path / "m")
    (tmp_path / "there").mkdir()
    with pytest.raises(Unwritable, match="exists"):
        merge_models(family.models, tmp_path / "there", base=family.base)


def test_a_method_of_a_user_is_one_function_and_one_row(family: Family, tmp_path: Path) -> None:
    from saekit.steer.merge import Merge, Step

    def first(job: Job) -> Any:
        def merge(piece: Piece) -> Step:
            return Step(piece.deltas[0], piece.deltas)

        return merge

    MERGES.register("first", Merge(first, "the first model"))
    try:
        merge_models(family.models, tmp_path / "m", base=family.base, settings=MergeSettings("first"))
    finally:
        MERGES.unregister("first")
    assert all(torch.equal(weights(tmp_path / "m")[name], each) for name, each in weights(family.models[0]).items())


def test_changed_seeds_are_no_copies(family: Family) -> None:
    """The two models of the other tests differ from the base and from each other."""
    one, other = family.taus()
    assert all((one[name] != other[name]).any() for name in one)
    assert changed(rounded(), 1).text.sha256 == make_lm().text.sha256


def test_a_merge_as_a_change_of_weights(family: Family, tmp_path: Path) -> None:
    """Inside the edit the model computes as the merged folder does; after it, every bit is back."""
    settings = MergeSettings("ties", options={"density": 0.5})
    merge_models(family.models, tmp_path / "m", base=family.base, settings=settings)
    delta, report = merged_delta(family.models, family.base, settings=settings)
    delta.save(tmp_path / "delta.safetensors")
    lm, merged = LanguageModel.load(family.base), LanguageModel.load(tmp_path / "m")
    before = {name: each.clone() for name, each in lm.model.named_parameters()}
    with lm.edited(WeightDelta.load(tmp_path / "delta.safetensors", lm)):
        for name, each in lm.model.named_parameters():
            assert torch.equal(each, merged.model.get_parameter(name)), name
    assert all(torch.equal(before[name], each) for name, each in lm.model.named_parameters())
    assert report.method == "ties" and delta.facts["method"] == "merge ties"
