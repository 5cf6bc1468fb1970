"""Files of other tools: each layout as its tool writes it; sae-lens's own loaders, over a hub cache on disk, are the oracle."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saekit.errors import SAEFormatError, SAENotFound
from saekit.names.site_map import SiteMap
from saekit.sae import SAE, load_from
from saekit.sae.foreign import LAYOUTS

D, F, K = 12, 40, 6
COMMIT = "1" * 40


def _r(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * shape[-1] ** -0.5


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _linear(encoder: str = "encoder", decoder: str = "decoder") -> dict[str, torch.Tensor]:
    """Weights as torch's `Linear` keeps them: (out, in)."""
    return {
        f"{encoder}.weight": _r(F, D, seed=1),
        f"{encoder}.bias": _r(F, seed=2),
        f"{decoder}.weight": _r(D, F, seed=3),
        f"{decoder}.bias": _r(D, seed=4),
    }


def _dictionary_learning(folder: Path, dict_class: str, **trainer: Any) -> None:
    facts = {
        "dict_class": dict_class,
        "layer": 3,
        "activation_dim": D,
        "dict_size": F,
        "lm_name": "EleutherAI/pythia-70m-deduped",
    }
    _json(
        folder / "config.json",
        {"trainer": facts | {"submodule_name": "resid_post_layer_3"} | trainer, "buffer": {"ctx_len": 128}},
    )
    linear = {key: value for key, value in _linear().items() if key != "decoder.bias"} | {"b_dec": _r(D, seed=4)}
    tensors = {
        "AutoEncoder": {**{key: value for key, value in linear.items() if key != "b_dec"}, "bias": _r(D, seed=4)},
        "AutoEncoderTopK": linear | {"k": torch.tensor(K), "threshold": torch.tensor(0.3)},
        "GatedAutoEncoder": {
            "encoder.weight": _r(F, D, seed=1),
            "decoder.weight": _r(D, F, seed=3),
            "decoder_bias": _r(D, seed=4),
            **{name: _r(F, seed=5 + i) for i, name in enumerate(("r_mag", "gate_bias", "mag_bias"))},
        },
        "JumpReluAutoEncoder": {
            "W_enc": _r(D, F, seed=1),
            "W_dec": _r(F, D, seed=3),
            "b_enc": _r(F, seed=2),
            "b_dec": _r(D, seed=4),
            "threshold": _r(F, seed=5).abs(),
        },
        "BatchTopKSAE": linear | {"k": torch.tensor(K), "threshold": torch.tensor(0.1)},
        "MatryoshkaBatchTopKSAE": {
            "W_enc": _r(D, F, seed=1),
            "W_dec": _r(F, D, seed=3),
            "b_enc": _r(F, seed=2),
            "b_dec": _r(D, seed=4),
            "k": torch.tensor(K),
            "threshold": torch.tensor(0.1),
        },
    }[dict_class]
    torch.save(tensors, folder / "ae.pt")


def _sparsify(folder: Path, **cfg: Any) -> dict[str, torch.Tensor]:
    """As `SparseCoder.save_to_disk` and the trainer of eai-sparsify 1.3 write it."""
    facts = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": F, "k": K, "d_in": D}
    _json(folder / "cfg.json", facts | {"multi_topk": False, "skip_connection": False, "transcode": False} | cfg)
    _json(folder.parent / "config.json", {"model": "EleutherAI/pythia-160m", "dataset": "some/data", "ctx_len": 64})
    tensors = {
        "encoder.weight": _r(F, D, seed=1),
        "encoder.bias": _r(F, seed=2),
        "W_dec": _r(F, D, seed=3),
        "b_dec": _r(D, seed=4),
    }
    save_file(tensors, folder / "sae.safetensors")
    return tensors


def _npz(folder: Path) -> None:
    folder.mkdir(parents=True)
    tensors = {"w_enc": _r(D, F, seed=1), "w_dec": _r(F, D, seed=3), "b_enc": _r(F, seed=2), "b_dec": _r(D, seed=4)}
    np.savez(folder / "params.npz", **{n: t.numpy() for n, t in (tensors | {"threshold": _r(F, seed=5).abs()}).items()})


def _npz_upper(folder: Path) -> None:
    folder.mkdir(parents=True)
    tensors = {"W_enc": _r(D, F, seed=1), "W_dec": _r(F, D, seed=3), "b_enc": _r(F, seed=2), "b_dec": _r(D, seed=4)}
    np.savez(folder / "params.npz", **{n: t.numpy() for n, t in (tensors | {"threshold": _r(F, seed=5).abs()}).items()})


def _gemma_3(folder: Path, **cfg: Any) -> None:
    _json(folder / "config.json", {"architecture": "jump_relu", "model_name": "google/gemma-3-1b-pt", **cfg})
    tensors = {"w_enc": _r(D, F, seed=1), "w_dec": _r(F, D, seed=3), "b_enc": _r(F, seed=2), "b_dec": _r(D, seed=4)}
    if cfg.get("affine_connection"):
        tensors["affine_skip_connection"] = _r(D, D, seed=6)
    save_file(tensors | {"threshold": _r(F, seed=5).abs()}, folder / "params.safetensors")


def _gemma_3_clt(folder: Path) -> None:
    folder.mkdir(parents=True)
    tensors = {"w_enc": _r(D, F, seed=1), "w_dec": _r(F, 3, D, seed=3), "b_enc": _r(F, seed=2), "b_dec": _r(D, seed=4)}
    tensors |= {"threshold": _r(F, seed=5).abs(), "affine_skip_connection": _r(D, D, seed=6)}
    save_file(tensors, folder / "params_layer_5.safetensors")


def _llama_scope(folder: Path) -> None:
    norm = D**0.5 / 112.21917808219177  # such that the factor is that in sae-lens's list
    facts = {"d_model": D, "d_sae": F, "jump_relu_threshold": 0.002, "hook_point_in": "blocks.0.hook_attn_out"}
    _json(folder / "hyperparams.json", facts | {"dataset_average_activation_norm": {"in": norm, "out": norm}})
    (folder / "checkpoints").mkdir()
    save_file(_linear(), folder / "checkpoints/final.safetensors")


def _llama_scope_r1(folder: Path) -> None:
    norm = D**0.5 / 53.52995401997436
    facts = {"d_model": D, "expansion_factor": F / D, "hook_point_in": "blocks.0.hook_resid_post"}
    _json(folder / "config.json", facts | {"expansion_factor": 4, "dataset_average_activation_norm": {"in": norm}})
    tensors = {"encoder.weight": _r(48, D, seed=1), "encoder.bias": _r(48, seed=2), "decoder.weight": _r(D, 48, seed=3)}
    save_file(
        tensors | {"decoder.bias": _r(D, seed=4), "log_jumprelu_threshold": _r(48, seed=5)}, folder / "sae_weights.safetensors"
    )


def _temporal(folder: Path) -> None:
    folder.mkdir(parents=True)
    sae = "{exp_factor: 4, n_heads: 2, n_attn_layers: 1, bottleneck_factor: 4, sae_diff_type: topk, kval_topk: 5"
    sae += ", tied_weights: true"
    (folder / "conf.yaml").write_text(f"llm: {{dimin: {D}}}\ndata: {{dtype: float32}}\nsae: {sae}, scaling_factor: 0.5}}\n")
    tensors = {"D": _r(48, D, seed=1), "b": _r(D, seed=2)}
    for i, (name, out) in enumerate((("k_ctx", 12), ("q_target", 12), ("v_ctx", 48), ("c_proj", 48))):
        tensors |= {f"attn_layers.0.{name}.weight": _r(out, 48, seed=3 + i), f"attn_layers.0.{name}.bias": _r(out, seed=9 + i)}
    save_file(tensors, folder / "latest_ckpt.safetensors")


def _mwhanna(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "wanb-config.yaml").write_text(f"d_model: {{value: {D}}}\nd_feature: {{value: {F}}}\nbatch_size: {{value: 64}}\n")
    (folder / "config.yaml").write_text("model_name: Qwen/Qwen3-4B\n")
    tensors = {"W_enc": _r(F, D, seed=1), "W_dec": _r(F, D, seed=3), "b_enc": _r(F, seed=2), "b_dec": _r(D, seed=4)}
    for layer in (0, 1):
        save_file({name: tensor + layer for name, tensor in tensors.items()}, folder / f"layer_{layer}.safetensors")


def _mntss(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(
        "model_name: google/gemma-2-2b\nfeature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n"
    )
    encoder = {"W_enc_0": _r(F, D, seed=1), "b_enc_0": _r(F, seed=2), "b_dec_0": _r(D, seed=4)}
    save_file(encoder, folder / "W_enc_0.safetensors")
    save_file({"W_dec_0": _r(F, 3, D, seed=3)}, folder / "W_dec_0.safetensors")


def _hook_z(folder: Path) -> None:
    _json(folder / "gpt2-small_L1_x_cfg.json", {"act_size": D, "dict_size": F, "act_name": "blocks.1.attn.hook_z"})
    tensors = {"W_enc": _r(D, F, seed=1), "W_dec": _r(F, D, seed=3), "b_enc": _r(F, seed=2), "b_dec": _r(D, seed=4)}
    torch.save(tensors, folder / "gpt2-small_L1_x.pt")


def _qwen(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"W_enc": _r(F, D, seed=1), "W_dec": _r(D, F, seed=3), "b_enc": _r(F, seed=2), "b_dec": _r(D, seed=4)}
    torch.save(tensors, folder / "layer4.sae.pt")


def _saved(tensors: dict[str, torch.Tensor], name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(tensors, folder / name)

    return write


@dataclass(frozen=True)
class Case:
    """One folder in a foreign layout."""

    layout: str
    repository: str
    path: str
    write: Callable[[Path], None]
    """Writes the folder."""
    loader: str
    """Of sae-lens."""
    entry: str = ""
    """The file that is the SAE, where it is no folder."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """What the oracle must be told: the sizes that sae-lens has for the published files alone."""
    site: str | None = None
    model: str | None = None
    folder_name: str = ""
    """What the oracle is asked for, where it is no path."""

    @property
    def source(self) -> str:
        return "/".join(filter(None, (self.path, self.entry)))


SIZES = {"d_in": D, "d_sae": F}
GEMMA = {"write": _npz, "overrides": SIZES}
HOOK_IN = {"hf_hook_point_in": "model.layers.5.pre_feedforward_layernorm.output"}
HOOK_OUT = {"hf_hook_point_out": "model.layers.5.post_feedforward_layernorm.output"}
SCOPE_2 = "google/gemma-scope-2-1b-pt"


def _dl(dict_class: str, **trainer: Any) -> Case:
    return Case(
        "dictionary_learning",
        "someone/saes",
        f"pythia/{dict_class}/trainer_0",
        lambda folder: _dictionary_learning(folder, dict_class, **trainer),
        "dictionary_learning_1",
        site="resid_post.3",
        model="pythia-70m-deduped",
    )


CASES = {
    "AutoEncoder": _dl("AutoEncoder"),
    "AutoEncoderTopK": _dl("AutoEncoderTopK", k=K),
    "GatedAutoEncoder": _dl("GatedAutoEncoder"),
    "JumpReluAutoEncoder": _dl("JumpReluAutoEncoder"),
    "BatchTopKSAE": _dl("BatchTopKSAE"),
    "MatryoshkaBatchTopKSAE": _dl("MatryoshkaBatchTopKSAE"),
    "gemma scope residual": Case(
        "gemma_scope",
        "google/gemma-scope-2b-pt-res",
        "layer_20/width_16k/average_l0_7",
        loader="gemma_2",
        site="resid_post.20",
        model="gemma-2-2b",
        **GEMMA,
    ),
    "gemma scope embedding": Case(
        "gemma_scope", "google/gemma-scope-2b-pt-res", "embedding/width_4k/average_l0_7", loader="gemma_2", site="embed", **GEMMA
    ),
    "gemma scope attention": Case(
        "gemma_scope", "google/gemma-scope-9b-pt-att", "layer_2/width_16k/average_l0_7", loader="gemma_2", site="heads.2", **GEMMA
    ),
    "gemma scope mlp": Case(
        "gemma_scope",
        "google/gemma-scope-2b-pt-mlp",
        "layer_2/width_16k/average_l0_7",
        loader="gemma_2",
        site="mlp_out.2",
        **GEMMA,
    ),
    "gemma scope transcoder": Case(
        "gemma_scope",
        "google/gemma-scope-2b-pt-transcoders",
        "layer_2/width_16k/average_l0_7",
        _npz_upper,
        "gemma_2_transcoder",
        overrides=SIZES | {"d_out": D},
    ),
    "gemma scope 2": Case(
        "gemma_scope_2",
        SCOPE_2,
        "resid_post/layer_5_width_16k_l0_tiny",
        _gemma_3,
        "gemma_3",
        site="resid_post.5",
        model="google/gemma-3-1b-pt",
    ),
    "gemma scope 2 attention": Case(
        "gemma_scope_2", SCOPE_2, "attn_out/layer_5_width_16k_l0_tiny", _gemma_3, "gemma_3", site="heads.5"
    ),
    "gemma scope 2 transcoder": Case(
        "gemma_scope_2",
        SCOPE_2,
        "transcoder/layer_5_width_16k_l0_tiny",
        lambda folder: _gemma_3(folder, **HOOK_IN, **HOOK_OUT),
        "gemma_3",
        site="mlp_in.5",
    ),
    "gemma scope 2 skip transcoder": Case(
        "gemma_scope_2",
        SCOPE_2,
        "transcoder/layer_5_width_16k_l0_tiny_affine",
        lambda folder: _gemma_3(folder, affine_connection=True, **HOOK_IN, **HOOK_OUT),
        "gemma_3",
    ),
    "gemma scope 2 layer of a CLT": Case(
        "gemma_scope_2_clt",
        SCOPE_2,
        "clt/width_tiny_affine",
        _gemma_3_clt,
        "gemma_3",
        entry="params_layer_5.safetensors",
        folder_name="clt/width_tiny_affine/params_layer_5",
        site="mlp_in.5",
        model="google/gemma-3-1b-pt",
    ),
    "llama scope": Case(
        "llama_scope",
        "fnlp/Llama3_1-8B-Base-LXA-8x",
        "Llama3_1-8B-Base-L0A-8x",
        _llama_scope,
        "llama_scope",
        site="attn_out.0",
        model="meta-llama/Llama-3.1-8B",
    ),
    "llama scope r1": Case(
        "llama_scope_r1",
        "fnlp/Llama-Scope-R1-Distill",
        "800M-Slimpajama-0-OpenR1-Math-220k/L0R",
        _llama_scope_r1,
        "llama_scope_r1_distill",
        site="resid_post.0",
    ),
    "temporal": Case("temporal", "canrager/mine", "gemma-2-2B/layer_12/temporal", _temporal, "temporal", site="resid_post.12"),
    "mwhanna": Case(
        "mwhanna",
        "mwhanna/mine",
        "",
        _mwhanna,
        "mwhanna_transcoder",
        entry="layer_1.safetensors",
        site="mlp_in.1",
        model="Qwen/Qwen3-4B",
    ),
    "mntss": Case(
        "mntss_clt",
        "mntss/mine",
        "",
        _mntss,
        "mntss_clt_layer_transcoder",
        entry="W_enc_0.safetensors",
        folder_name="0",
        site="resid_mid.0",
    ),
    "hook_z": Case(
        "hook_z",
        "ckkissane/mine",
        "",
        _hook_z,
        "connor_rob_hook_z",
        entry="gpt2-small_L1_x.pt",
        site="heads.1",
        model="gpt2-small",
    ),
    "qwen scope": Case(
        "qwen_scope",
        "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_6",
        "",
        _qwen,
        "qwen_scope",
        entry="layer4.sae.pt",
        overrides=SIZES,
        site="resid_post.4",
        model="Qwen/Qwen3-1.7B-Base",
    ),
    "goodfire": Case(
        "goodfire",
        "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
        "",
        _saved(_linear("encoder_linear", "decoder_linear"), "Llama-3.1-8B-Instruct-SAE-l19.pth"),
        "goodfire",
        entry="Llama-3.1-8B-Instruct-SAE-l19.pth",
        overrides=SIZES,
        site="resid_post.19",
        model="meta-llama/Llama-3.1-8B-Instruct",
    ),
    "deepseek": Case(
        "deepseek_r1",
        "qresearch/mine",
        "",
        _saved(_linear(), "DeepSeek-R1-Distill-Llama-8B-SAE-l7.pt"),
        "deepseek_r1",
        entry="DeepSeek-R1-Distill-Llama-8B-SAE-l7.pt",
        overrides=SIZES,
        site="resid_post.7",
    ),
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Case], Path]:
    """Put a case into a hub cache on disk, which both libraries read without a network; returns the repository's root."""
    import sae_lens.loading.pretrained_sae_loaders as loaders
    from huggingface_hub import constants
    from safetensors import safe_open

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def write(case: Case) -> Path:
        repository = tmp_path / "cache" / f"models--{case.repository.replace('/', '--')}"
        root = repository / "snapshots" / COMMIT
        (repository / "refs").mkdir(parents=True)
        (repository / "refs/main").write_text(COMMIT)
        case.write(root / case.path)

        def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
            with safe_open(root / filename, "pt") as file:  # sae-lens asks the hub for a part of the file
                return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118

        monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", shapes)
        return root

    return write


def _theirs(case: Case) -> Any:
    import sae_lens
    from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    for release, row in get_pretrained_saes_directory().items():
        for sae_id, path in row.saes_map.items():
            if row.repo_id == case.repository and path == case.source and not case.overrides:
                return sae_lens.SAE.from_pretrained(release, sae_id)

    def converter(**given: Any) -> Any:
        given["cfg_overrides"] = {**given["cfg_overrides"], **case.overrides}
        return NAMED_PRETRAINED_SAE_LOADERS[case.loader](**given)  # type: ignore[arg-type]

    return sae_lens.SAE.from_pretrained(case.repository, case.folder_name or case.source, converter=converter)


def _assert_equal(ours: SAE, theirs: Any) -> None:
    """Values, and the gradients of reconstructions with respect to the input."""
    shape = (2, 5, 3, 4) if theirs.cfg.reshape_activations == "hook_z" else (2, 5, D)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    close = {"rtol": 1e-5, "atol": 1e-5}
    assert type(theirs).__name__ and theirs.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_dense(x), theirs.encode(x), **close)
        assert theirs.encode(x).any() and not theirs.encode(x).all()
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    here, there = ours(mine), theirs(other)
    torch.testing.assert_close(here, there, **close)
    weight = torch.randn(there.shape, generator=torch.Generator().manual_seed(1))
    (here * weight).sum().backward()
    (there * weight).sum().backward()
    torch.testing.assert_close(mine.grad, other.grad, **close)


@pytest.mark.filterwarnings(
    "ignore:This loads the CLT layer", "ignore:.*is a layer of a cross-layer", "ignore:.*HuggingFace repo_id"
)
@pytest.mark.parametrize("name", CASES)
def test_each_layout(name: str, cache: Callable[[Case], Path], tmp_path: Path) -> None:
    case = CASES[name]
    root = cache(case)
    theirs = _theirs(case)
    # By the name of the repository, out of the cache; the folder in the cache; a copy; a copy in a folder of the same name.
    plain = tmp_path / "copies" / "of" / (Path(case.path).name or "some")
    same = tmp_path / "down" / case.repository.split("/")[1]
    shutil.copytree(root / case.path, plain)
    if (parent := (root / case.path).parent / "config.json").exists():
        shutil.copy(parent, plain.parent)
    shutil.copytree(root, same)
    sources = [f"{case.repository}/{case.source}".rstrip("/"), root / case.source, same / case.source]
    if name == "goodfire":  # sae-lens lists it, with the size of the published file
        sources = [plain / case.entry]
    for source in sources:
        loaded = load_from(source)
        _assert_equal(loaded.sae, theirs)
        assert loaded.origin.layout == case.layout
        assert loaded.sae.origin == loaded.origin
        if case.site is not None:
            assert str(loaded.sae.cfg.reads[0]) == case.site
        if case.model is not None:
            assert loaded.origin.model == case.model
    if name != "goodfire":
        origin = load_from(sources[0]).origin
        assert (origin.repository, origin.revision) == (case.repository, COMMIT)
    if "gemma scope" in name or name == "qwen scope":
        return  # the names of its folders are a part of these files
    loaded = load_from(plain / case.entry)
    _assert_equal(loaded.sae, theirs)
    loaded.sae.save(tmp_path / "saved")
    again = load_from(tmp_path / "saved")
    _assert_equal(again.sae, theirs)
    assert again.origin == loaded.origin and again.sae.fingerprint() == loaded.sae.fingerprint()


@pytest.mark.parametrize("signed", [False, True])
def test_sparsify(signed: bool, tmp_path: Path) -> None:
    """sae-lens's loader fails on these files, so that the formulas of eai-sparsify 1.3 are the oracle."""
    folder = tmp_path / "layers.5"
    t = _sparsify(folder, **({"signed": True} if signed else {}))
    loaded = load_from(folder)
    x = torch.randn(9, D, generator=torch.Generator().manual_seed(0))
    pre = (x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]
    kept = (pre.abs() if signed else pre.relu()).topk(K).indices
    acts = torch.zeros_like(pre).scatter(-1, kept, (pre if signed else pre.relu()).gather(-1, kept))
    torch.testing.assert_close(loaded.sae.encode_dense(x), acts, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded.sae(x), acts @ t["W_dec"] + t["b_dec"], rtol=1e-5, atol=1e-5)
    origin = loaded.origin
    assert (origin.layout, origin.model, origin.dataset) == ("sparsify", "EleutherAI/pythia-160m", "some/data")
    assert (str(origin.site_map), origin.context) == ("resid_post.5", 64)
    for name, site in (("layers.5.mlp", "mlp_out.5"), ("layers.5.attn", "attn_out.5"), ("mine", None), ("h.3", "resid_post.3")):
        shutil.copytree(folder, tmp_path / name)
        assert load_from(tmp_path / name).origin.site_map == (None if site is None else SiteMap.parse(site))
    for key, value in (("transcode", True), ("skip_connection", True), ("activation", "groupmax")):
        _sparsify(folder, **{key: value})
        with pytest.raises(SAEFormatError, match=f"{key}=.*TopK SAEs of sparsify"):
            SAE.load(folder)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
def test_openai(activation: str, tied: bool, tmp_path: Path) -> None:
    """The formulas of openai/sparse_autoencoder are the oracle: sae-lens has no loader of these files."""
    state: dict[str, Any] = {"encoder.weight": _r(F, D, seed=1), "latent_bias": _r(F, seed=2), "pre_bias": _r(D, seed=4)}
    state |= {"stats_last_nonzero": torch.zeros(F), "activation": activation}
    state |= {} if tied else {"decoder.weight": _r(D, F, seed=3)}
    state |= {"activation_state_dict": {"k": K, "postact_fn": "ReLU"}} if activation == "TopK" else {}
    torch.save(state, tmp_path / "gpt2_5.pt")
    x = 3 * torch.randn(9, D, generator=torch.Generator().manual_seed(0)) + 1
    rows, mu, std = x, torch.zeros(9, 1), torch.ones(9, 1)
    if activation == "TopK":
        mu = x.mean(-1, keepdim=True)
        std = (x - mu).std(-1, keepdim=True)
        rows = (x - mu) / (std + 1e-5)
    pre = (rows - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"]
    acts = pre.relu()
    if activation == "TopK":
        acts = torch.zeros_like(pre).scatter(-1, pre.topk(K).indices, pre.topk(K).values.relu())
    decoder = state["encoder.weight"] if tied else state["decoder.weight"].T
    loaded = load_from(tmp_path / "gpt2_5.pt")
    torch.testing.assert_close(loaded.sae.encode_dense(x), acts, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded.sae(x), (acts @ decoder + state["pre_bias"]) * std + mu, rtol=1e-5, atol=1e-5)
    assert loaded.origin.layout == "openai" and loaded.origin.model is None and loaded.origin.site_map is None
    torch.save(state | {"activation": "Identity"}, tmp_path / "gpt2_5.pt")
    with pytest.raises(SAEFormatError, match="activation 'Identity' is not supported"):
        SAE.load(tmp_path / "gpt2_5.pt")


def _refused(message: str, source: Path | str, error: type[Exception] = SAEFormatError) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(error, match=message):
            SAE.load(source)


class _Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("/tmp/saekit-was-here"),)


def test_what_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "dl"
    _dictionary_learning(folder, "AutoEncoder")
    cfg = json.loads((folder / "config.json").read_text())
    _json(folder / "config.json", cfg | {"trainer": cfg["trainer"] | {"dict_class": "CrossCoder"}})
    _refused("CrossCoder of dictionary_learning, which sae-lens does not convert.*Known: AutoEncoder", folder)
    _json(folder / "config.json", {"trainer": cfg["trainer"]})
    _refused("sae-lens cannot convert .*dl: KeyError: it has no 'buffer'", folder)
    _json(folder / "config.json", cfg)
    (folder / "ae.pt").write_bytes(pickle.dumps(_Evil()))
    _refused("ae.pt is .*(pickle|no file of torch)", folder)
    torch.save({"encoder.weight": _Evil()}, folder / "ae.pt")
    _refused("ae.pt is a pickle that holds more than tensors", folder)
    assert not Path("/tmp/saekit-was-here").exists()
    torch.save(torch.zeros(3), folder / "ae.pt")
    _refused("ae.pt holds a Tensor, not named tensors", folder)

    _mwhanna(tmp_path / "many")
    _refused(r"many holds 2 SAEs .*layer_0.safetensors.*Name one: .*many/layer_0.safetensors", tmp_path / "many")
    _refused("does not say k", _written(_qwen, tmp_path / "renamed") / "layer4.sae.pt")
    _gemma_3(tmp_path / "scope2")
    _refused("which layer it is of.*Keep the folder names", tmp_path / "scope2")
    np.savez(_made(tmp_path / "objects") / "params.npz", w_enc=np.array([_Evil()], dtype=object))
    _refused("holds objects, so loading it could run code", tmp_path / "objects")
    (_made(tmp_path / "broken") / "params.npz").write_bytes(b"PK nothing")
    _refused("no readable params.npz", tmp_path / "broken")
    (_made(tmp_path / "other") / "weights.bin").write_bytes(b"x")
    _refused(
        r"other holds no SAE that saekit knows: it holds weights.bin. Known: sae-lens, .*dictionary_learning", tmp_path / "other"
    )
    _refused("holds nothing. Known", _made(tmp_path / "empty"))
    torch.save({"a": torch.zeros(3)}, tmp_path / "other/x.pt")
    _refused("holds no SAE that saekit knows", tmp_path / "other/x.pt")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _written(write: Callable[[Path], None], folder: Path) -> Path:
    write(folder)
    return folder


def test_gemma_scope_in_folders_that_say_nothing(tmp_path: Path) -> None:
    _npz(tmp_path / "mine")
    with pytest.warns(UserWarning, match="say neither model nor site"):
        loaded = load_from(tmp_path / "mine")
    assert loaded.origin.model is None and loaded.origin.site_map is None and loaded.origin.hook_name is None
    hooks = HOOK_IN | {"hf_hook_point_in": "model.layers.5.output"}
    _gemma_3(tmp_path / "mine2", **hooks)
    assert str(load_from(tmp_path / "mine2").origin.site_map) == "resid_post.5"


def test_every_layout_has_a_test() -> None:
    tested = {case.layout for case in CASES.values()} | {"sae_lens", "sparsify", "openai"}
    assert set(LAYOUTS) == tested
    from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS

    known = {row.loader for row in LAYOUTS.values()} | {"gemma_2_transcoder", "sparsify"}
    assert set(NAMED_PRETRAINED_SAE_LOADERS) <= known  # all that sae-lens converts


def test_names_that_are_no_repository(tmp_path: Path) -> None:
    _refused("cannot name a repository", "a b/c d", SAENotFound)
    with pytest.raises(SAENotFound, match="on disk, and has no revision 'x'"):
        SAE.load(tmp_path, revision="x")
