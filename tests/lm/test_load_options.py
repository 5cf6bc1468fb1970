"""Options of loading: code that comes with a model, adapters, quantised weights, places, tokenizers; and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from saekit import trust
from saekit.errors import ConfigError, MissingPackage, ModelNotFound, SaekitError, UnsupportedModel, UntrustedCode
from saekit.lm import LanguageModel
from saekit.model_options import ModelOptions
from saekit.workspace.loading import load_model
from saekit.workspace.study import study_of

TOKENS = [[1, 403, 407, 261]]
CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({ran!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "own_llama"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def with_config(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of a model whose configuration has some entries changed."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


# Code that comes with a model


@pytest.fixture
def own_code(stories_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    names = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"}
    folder = with_config(stories_path, tmp_path / "own", model_type="own_llama", architectures=["OwnModel"], auto_map=names)
    (folder / "own_code.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    return folder


def test_code_is_not_run_unless_it_is_trusted(own_code: Path, stories_lm: LanguageModel) -> None:
    ran = own_code.parent / "ran"
    with pytest.raises(UntrustedCode, match=r"comes with Python code of its own.*--trust-remote-code"):
        LanguageModel.load(own_code, device="cpu")
    assert not ran.exists()
    lm = LanguageModel.load(own_code, device="cpu", trust_remote_code=True)
    assert ran.exists() and type(lm.model).__name__ == "OwnModel"
    assert torch.equal(lm.run(TOKENS).logits, stories_lm.run(TOKENS).logits)
    assert lm.loading_facts() == {"trust_remote_code": True}


def test_the_record_of_a_workspace_alone_runs_no_code(own_code: Path) -> None:
    """A workspace may come from somebody else; the user's own list decides."""
    study = study_of(str(own_code), ("resid_post.1",), "d", trust_remote_code=True, device="cpu")
    with pytest.raises(UntrustedCode):
        load_model(study, None, {})
    assert not (own_code.parent / "ran").exists()
    load_model(study, None, {"trust_remote_code": True})
    assert trust.allowed(str(own_code)) and not trust.allowed(str(own_code.parent))
    assert load_model(study, None, {}).n_layers == 5


def test_changed_code_in_a_folder_is_refused(own_code: Path) -> None:
    study = study_of(str(own_code), ("resid_post.1",), "d", trust_remote_code=True, device="cpu")
    load_model(study, None, {"trust_remote_code": True})
    file, ran = own_code / "own_code.py", own_code.parent / "ran"
    file.write_text(file.read_text() + "\n# changed\n")
    ran.unlink()
    with pytest.raises(UntrustedCode, match=r"has changed since you allowed it to run.*--trust-remote-code again"):
        load_model(study, None, {})
    assert not ran.exists()
    load_model(study, None, {"trust_remote_code": True})
    ran.unlink()
    load_model(study, None, {})
    assert trust.allowed(str(own_code))


def test_every_way_to_change_the_code_of_a_folder_counts(own_code: Path) -> None:
    """Files that are added, renamed or linked, nested files, and the classes that a configuration names."""
    trust.allow(str(own_code))
    outside = own_code.parent / "outside"
    outside.mkdir()
    (outside / "linked.py").write_text("")
    config = own_code / "config.json"
    nested = own_code / "a" / "b" / "nested.py"
    nested.parent.mkdir(parents=True)
    changes = (
        lambda: nested.write_text(""),
        lambda: nested.rename(nested.with_name("renamed.py")),
        lambda: (own_code / "link.py").symlink_to(outside / "linked.py"),
        lambda: (own_code / "folder").symlink_to(outside),
        lambda: (outside / "linked.py").write_text("pass"),
        lambda: config.write_text(config.read_text().replace("own_code.OwnModel", "someone/else--own_code.OwnModel")),
    )
    for change in changes:
        assert trust.allowed(str(own_code))
        change()
        assert not trust.allowed(str(own_code)) and trust.changed(str(own_code))
        trust.allow(str(own_code))
    (own_code / "upwards").symlink_to(own_code.parent)  # neither a loop nor a walk through the parent folder
    (own_code / "README.md").write_text("no code")
    assert trust.allowed(str(own_code)) and not trust.changed(str(own_code))


def test_changed_code_of_the_base_model_of_an_adapter_counts(own_code: Path) -> None:
    adapter = own_code.parent / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(own_code)}))
    trust.allow(str(adapter))
    assert trust.allowed(str(adapter))
    (own_code / "own_code.py").write_text("pass")
    assert trust.changed(str(adapter))


def test_trust_in_a_folder_without_a_hash_is_asked_for_again(own_code: Path) -> None:
    listed = own_code.parent / "config" / "saekit" / "models-that-may-run-code.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text(f"{own_code}\n")
    with pytest.raises(UntrustedCode, match="--trust-remote-code"):
        load_model(study_of(str(own_code), ("resid_post.1",), "d", trust_remote_code=True, device="cpu"), None, {})
    assert not (own_code.parent / "ran").exists()


def test_trust_in_a_commit_is_not_trust_in_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    trust.allow("owner/model", "a" * 40)
    trust.allow("owner/model", "a" * 40)
    assert trust.allowed("owner/model", "a" * 40)
    assert not trust.allowed("owner/model", "b" * 40) and not trust.allowed("owner/model")


# Adapters


def test_an_adapter_without_peft_names_the_package(stories_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from saekit.lm import quantized

    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(stories_path)}))
    monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"is a PEFT adapter, which needs the package peft\. Install it: pip install peft"):
        LanguageModel.load(tmp_path)


@pytest.fixture
def adapter(stories_path: Path, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """The folder of an adapter, and the logits of the model with it."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "o_proj", "down_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(stories_path), settings).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        return tmp_path / "adapter", adapted(input_ids=torch.tensor(TOKENS)).logits


def test_an_adapter_is_merged_into_its_base_model(
    adapter: tuple[Path, torch.Tensor], stories_path: Path, stories_lm: LanguageModel, tmp_path: Path
) -> None:
    folder, theirs = adapter
    lm = LanguageModel.load(folder, device="cpu")
    torch.testing.assert_close(lm.run(TOKENS).logits, theirs, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(theirs, stories_lm.run(TOKENS).logits, atol=1e-2)
    assert lm.sites() == stories_lm.sites() and not any(each.requires_grad for each in lm.model.parameters())
    assert not any("lora" in name for name, _ in lm.model.named_parameters())
    # A folder that holds its base model, too.
    both = shutil.copytree(stories_path, tmp_path / "both")
    for file in folder.glob("adapter*"):
        shutil.copy(file, both)
    torch.testing.assert_close(LanguageModel.load(both, device="cpu").run(TOKENS).logits, theirs, atol=1e-4, rtol=1e-4)


def test_an_adapter_on_quantised_weights_is_attached(adapter: tuple[Path, torch.Tensor], stories_lm: LanguageModel) -> None:
    pytest.importorskip("bitsandbytes")
    folder, theirs = adapter
    lm = LanguageModel.load(folder, device="cpu", quantization="8bit")
    ours, without = lm.run(TOKENS).logits.float(), stories_lm.run(TOKENS).logits
    assert any("lora" in name for name, _ in lm.model.named_parameters())
    assert (ours - theirs).norm() < 0.25 * (without - theirs).norm()


def test_adapters_without_a_base_model(adapter: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    record = adapter[0] / "adapter_config.json"
    facts = json.loads(record.read_text())
    for base, words in (("", "does not name a base model"), (str(tmp_path / "gone"), "The base model of the adapter")):
        record.write_text(json.dumps(facts | {"base_model_name_or_path": base}))
        with pytest.raises(ModelNotFound, match=words):
            LanguageModel.load(adapter[0])


# Quantised weights


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptqmodel and optimum"),
        ({"quant_method": "awq", "bits": 4}, "gptqmodel"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "fp8"}, "accelerate"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
    ],
)
def test_quantised_weights_name_the_package_that_they_need(
    settings: dict[str, Any], package: str, stories_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saekit.lm import quantized

    folder = with_config(stories_path, tmp_path / "model", quantization_config=settings)
    (folder / "model.safetensors").unlink()  # found before weights are read
    monkeypatch.setattr(quantized, "_installed", lambda module: False)
    with pytest.raises(MissingPackage, match=rf"are quantised \(.*\), which needs the packages? {package}\. Install"):
        LanguageModel.load(folder, device="cpu")


def test_quantising_while_loading(stories_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from saekit.lm import quantized

    monkeypatch.setattr(quantized, "_installed", lambda module: False)
    with pytest.raises(MissingPackage, match=r"Quantising .* to 4bit needs the package bitsandbytes"):
        LanguageModel.load(stories_path, quantization="4bit")
    with pytest.raises(ConfigError, match=r"quantization='3bit' is not a choice. Give 4bit or 8bit"):
        LanguageModel.load(stories_path, quantization="3bit")
    folder = with_config(stories_path, tmp_path / "model", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ConfigError, match=r"are quantised already \(gptq\)"):
        LanguageModel.load(folder, quantization="8bit")


def small_llama(stories_path: Path, folder: Path, *, intermediate_size: int) -> Any:
    """A random model, written to a folder with a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=intermediate_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    for file in stories_path.glob("tokenizer*"):
        shutil.copy(file, folder)
    return model


@pytest.mark.parametrize(("asked", "least"), [("8bit", 0.99), ("4bit", 0.9)])
def test_a_quantised_model_runs(asked: str, least: float, stories_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = small_llama(stories_path, tmp_path, intermediate_size=256)
    lm = LanguageModel.load(tmp_path, quantization=asked, device="cpu")
    with torch.no_grad():
        exact = model(input_ids=torch.tensor(TOKENS)).logits
    ours = lm.run(TOKENS).logits.float()
    assert torch.nn.functional.cosine_similarity(ours.flatten(), exact.flatten(), dim=0) > least
    assert not torch.equal(ours, exact)
    assert lm.loading_facts()["quantization"] == asked and len(lm.fingerprint()["model"]) == 64


def test_widths_that_the_4bit_cpu_kernel_refuses_are_refused_while_loading(stories_path: Path, tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    if not functional.has_avx512bf16():
        pytest.skip("bitsandbytes has this kernel on processors with AVX512-BF16")
    small_llama(stories_path, tmp_path, intermediate_size=200)
    with pytest.raises(ConfigError, match=r"widths of .* 4-bit CPU kernel of bitsandbytes: .*128 inputs and 200 outputs.*8bit"):
        LanguageModel.load(tmp_path, quantization="4bit", device="cpu")
    assert LanguageModel.load(tmp_path, quantization="8bit", device="cpu").run(TOKENS).logits.isfinite().all()


def test_commands_show_no_notices_of_bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes")
    code = "from saekit.cli.output import quiet_libraries; quiet_libraries(); import bitsandbytes"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


# Places, attention, tokenizers


def test_places_and_attention(stories_path: Path, stories_lm: LanguageModel) -> None:
    spread = LanguageModel.load(stories_path, device_map="auto")
    assert torch.equal(spread.run(TOKENS).logits.cpu(), stories_lm.run(TOKENS).logits) or torch.cuda.is_available()
    with pytest.raises(ConfigError, match="Both a device and a device map"):
        LanguageModel.load(stories_path, device="cpu", device_map="auto")
    with pytest.raises(ConfigError, match=r"There is no device map 'everywhere'. Give auto"):
        LanguageModel.load(stories_path, device_map="everywhere")
    eager = LanguageModel.load(stories_path, device="cpu", attn_implementation="eager")
    assert eager.model.config._attn_implementation == "eager"
    torch.testing.assert_close(eager.run(TOKENS).logits, stories_lm.run(TOKENS).logits)
    with pytest.raises(SaekitError, match="flash_attention_9"):
        LanguageModel.load(stories_path, device="cpu", attn_implementation="flash_attention_9")
    with pytest.raises(ConfigError, match=r"A model has no option 'devise'. Did you mean 'device'"):
        LanguageModel.load(stories_path, devise="cpu")


def test_the_dtype_of_the_checkpoint_is_kept(stories_path: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(stories_path, dtype=torch.float16).save_pretrained(tmp_path / "half")
    for file in stories_path.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "half")
    assert LanguageModel.load(tmp_path / "half", device="cpu").dtype == torch.float16
    assert LanguageModel.load(tmp_path / "half", device="cpu", dtype="float32").dtype == torch.float32


def test_a_folder_without_a_tokenizer(stories_path: Path, stories_lm: LanguageModel, tmp_path: Path) -> None:
    bare = shutil.copytree(stories_path, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    words = shutil.copytree(stories_path, tmp_path / "words", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    with pytest.raises(ModelNotFound, match=r"bare has no tokenizer\. Give the folder or hub name of one: --tokenizer"):
        LanguageModel.load(bare)
    lm = LanguageModel.load(bare, tokenizer=str(words), device="cpu")
    assert lm.fingerprint()["tokenizer"] == stories_lm.fingerprint()["tokenizer"]


# Models of other kinds


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("t5", r"is an encoder-decoder model \(t5\)\. saekit needs a decoder-only"),
        ("bart", r"is an encoder-decoder model \(bart\)"),
        ("bert", r"is an encoder-only model \(bert\), in which every token sees later ones"),
        ("roberta", r"is an encoder-only model \(roberta\)"),
        ("modernbert", r"is an encoder-only model \(modernbert\)"),
        ("distilbert", r"is an encoder-only model \(distilbert\)"),
    ],
)
def test_other_kinds_of_models_are_refused_before_weights_are_read(kind: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UnsupportedModel, match=words):
        LanguageModel.load(tmp_path)


def test_an_encoder_decoder_in_memory_is_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(UnsupportedModel, match=r"is an encoder-decoder model \(t5\)"):
        LanguageModel.attach(T5ForConditionalGeneration(config), None)


def test_options_that_were_given() -> None:
    options = ModelOptions(dtype=torch.bfloat16, bos="no", device="cpu")
    assert options.given() == {"dtype": torch.bfloat16, "bos": "no", "device": "cpu"}
    assert ModelOptions().given() == {}
