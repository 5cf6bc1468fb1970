"""sae-lens is the oracle of the file format: each library loads the folders of the other, with equal results."""

from __future__ import annotations

import copy
import json
import os
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from saekit.errors import SAEFormatError, SAENotFound
from saekit.names.site import Site
from saekit.sae import ARCHITECTURES, SAE
from saekit.sae.config import NORMALIZATIONS
from saekit.sae.files import load_sparsity

SINGLE = {name: row for name, row in ARCHITECTURES.items() if not row.kind.crosses and row.options is None}

STORED = [name for name, row in SINGLE.items() if row.stored_as is None]
WIDTHS = [name for name in STORED if not SINGLE[name].kind.transcodes]
TRAINING = ["standard", "topk", "abstopk", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk"]
pytestmark = pytest.mark.filterwarnings("ignore:.*expects normalised inputs", "ignore:.*Setting use_error_term")


@pytest.fixture(scope="session")
def lens() -> Any:
    import sae_lens

    return sae_lens


def _x(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _assert_equal(ours: SAE, theirs: Any, x: torch.Tensor) -> None:
    """Codes, reconstructions, errors, and the gradients of codes and reconstructions with respect to the input."""
    _assert_equal_values(ours, theirs, x)
    for of_ours, of_theirs in ((ours.encode_dense, theirs.encode), (ours, theirs)):
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [of_ours(inputs[0]), of_theirs(inputs[1])]
        weight = _x(*outputs[1].shape, seed=3)
        for output in outputs:
            (output * weight).sum().backward()
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def _assert_equal_values(ours: SAE, theirs: Any, x: torch.Tensor) -> None:
    acts = theirs.encode(x)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(ours.encode_dense(x), acts, **close)
    torch.testing.assert_close(ours.encode_sparse(x).dense(ours.cfg.n_latents), acts, **close)
    torch.testing.assert_close(ours.encode_features(x, range(ours.cfg.n_latents)), acts, **close)
    # For normalising SAEs (and for heads), the decode of sae-lens uses state of its encode. Ours takes the input as an argument.
    ours_decoded = ours.decode(ours.encode(x)) if ours.cfg.transcodes else ours.decode(ours.encode(x), x)
    torch.testing.assert_close(ours_decoded, theirs.decode(acts), **close)
    torch.testing.assert_close(ours(x), theirs(x), **close)
    if not ours.cfg.transcodes:
        torch.testing.assert_close(x - ours(x), x - theirs(x), **close)


@pytest.mark.parametrize("architecture", SINGLE)
@settings(max_examples=15, deadline=None)
@given(
    d_head=st.integers(2, 8),
    heads=st.integers(2, 4),
    n_latents=st.integers(1, 50),
    normalization=st.sampled_from(NORMALIZATIONS),
    centred=st.booleans(),
    at_heads=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_our_folders_load_there(
    architecture: str,
    lens: Any,
    random_sae: Any,
    oracle: Any,
    d_head: int,
    heads: int,
    n_latents: int,
    normalization: str,
    centred: bool,
    at_heads: bool,
    seed: int,
) -> None:
    at_heads = at_heads and not SINGLE[architecture].kind.transcodes
    sae = random_sae(
        architecture,
        heads * d_head,
        n_latents,
        seed=seed,
        normalize_activations=normalization,
        apply_b_dec_to_input=centred,
        site=Site.parse("heads.1" if at_heads else "resid_post.1"),
        metadata={"saekit": {"corpus": "abc", "nested": [1, {"a": None}]}},
    )
    x = _x(5, heads * d_head, seed=seed)
    assume(oracle(sae, x).margin > 1e-5)
    x = x.unflatten(-1, (heads, d_head)) if at_heads else x
    with TemporaryDirectory() as folder:
        sae.save(folder)
        theirs, again = lens.SAE.load_from_disk(folder), SAE.load(folder)
        _assert_equal(sae, theirs, x)
        _assert_equal(again, theirs, x)
        assert theirs.cfg.metadata.hook_name == ("blocks.1.attn.hook_z" if at_heads else "blocks.1.hook_resid_post")
        assert theirs.cfg.metadata.saekit == {"corpus": "abc", "nested": [1, {"a": None}]}
        assert again.fingerprint() == sae.fingerprint()
        assert again.cfg.architecture == architecture and again.cfg.site == sae.cfg.site
        theirs.save_model(folder)
        assert SAE.load(folder).fingerprint() == sae.fingerprint()


def _randomize(theirs: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in theirs.named_parameters():
        scale = parameter.shape[0] ** -0.5 if name == "W_enc" else 0.5
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
        if name == "threshold":
            parameter.data.abs_()


@pytest.mark.parametrize("architecture", STORED)
@settings(max_examples=15, deadline=None)
@given(
    normalization=st.sampled_from(NORMALIZATIONS),
    centred=st.booleans(),
    rescales=st.booleans(),
    at_heads=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_its_inference_folders_load_here(
    architecture: str,
    lens: Any,
    oracle: Any,
    normalization: str,
    centred: bool,
    rescales: bool,
    at_heads: bool,
    seed: int,
) -> None:
    transcodes = SINGLE[architecture].kind.transcodes
    at_heads = at_heads and not transcodes
    theirs = lens.SAE.from_dict(
        {
            "architecture": architecture,
            "d_in": 12,
            "d_sae": 40,
            "d_out": 7,
            "k": 6,
            "rescale_acts_by_decoder_norm": rescales,
            "normalize_activations": normalization,
            "apply_b_dec_to_input": centred and not transcodes,
            "reshape_activations": "hook_z" if at_heads else "none",
            "metadata": {"hook_name": "blocks.2.attn.hook_z" if at_heads else "blocks.2.hook_mlp_out", "prepend_bos": False},
        }
    )
    _randomize(theirs, seed)
    x = _x(5, 12, seed=seed)
    with TemporaryDirectory() as folder:
        theirs.save_model(folder)
        ours, again = SAE.load(folder), lens.SAE.load_from_disk(folder)
    assume(oracle(ours, x).margin > 1e-5)
    _assert_equal(ours, again, x.unflatten(-1, (3, 4)) if at_heads else x)
    assert ours.cfg.site == Site.parse("heads.2" if at_heads else "mlp_out.2")
    assert ours.cfg.prepend_bos is False and ours.cfg.context_size is None


def _training_sae(lens: Any, architecture: str, seed: int, **cfg: Any) -> Any:
    classes = lens.registry.get_sae_training_class(architecture)
    if "topk" in architecture:
        cfg |= {"k": 5}
    if architecture == "matryoshka_batchtopk":
        cfg |= {"matryoshka_widths": [10, 20, 40]}
    theirs = classes[0](classes[1](d_in=12, d_sae=40, **cfg))
    _randomize(theirs, seed)
    if hasattr(theirs, "topk_threshold"):
        theirs.topk_threshold += 0.35
    return theirs


@pytest.mark.parametrize("rescales", [True, False])
@pytest.mark.parametrize("architecture", TRAINING)
def test_its_training_classes(architecture: str, rescales: bool, lens: Any, tmp_path: Path) -> None:
    cfg = {"rescale_acts_by_decoder_norm": rescales} if "topk" in architecture else {}
    theirs = _training_sae(lens, architecture, seed=4, **cfg)
    theirs.save_model(tmp_path / "training")
    theirs.save_inference_model(tmp_path / "inference")
    released = lens.SAE.load_from_disk(tmp_path / "inference")
    for folder in ("training", "inference"):
        ours = SAE.load(tmp_path / folder)
        _assert_equal(ours, released, _x(9, 12))
        assert ours.cfg.architecture == architecture.removesuffix("_batchtopk")
        if "batchtopk" in architecture:
            assert ours.cfg.k == 5


@pytest.mark.parametrize("rescales", [True, False])
@pytest.mark.parametrize("architecture", TRAINING)
def test_its_checkpoints_with_an_input_scale_beside_them(architecture: str, rescales: bool, lens: Any, tmp_path: Path) -> None:
    cfg = {"rescale_acts_by_decoder_norm": rescales} if "topk" in architecture else {}
    theirs = _training_sae(lens, architecture, seed=5, normalize_activations="expected_average_only_in", **cfg)
    theirs.save_model(tmp_path / "checkpoint")
    (tmp_path / "checkpoint/activation_scaler.json").write_text('{"scaling_factor": 0.3, "has_whitening": false}')
    theirs.fold_activation_norm_scaling_factor(0.3)
    theirs.save_inference_model(tmp_path / "finished")
    ours = SAE.load(tmp_path / "checkpoint")
    assert ours.cfg.normalize_activations == "none"
    _assert_equal(ours, lens.SAE.load_from_disk(tmp_path / "finished"), 3 * _x(9, 12))
    ours.save(tmp_path / "checkpoint")  # the folder still has the scale, which must not be applied twice
    assert SAE.load(tmp_path / "checkpoint").fingerprint() == ours.fingerprint()


def test_a_scale_missing_from_the_folder_gives_a_warning(lens: Any, tmp_path: Path) -> None:
    theirs = _training_sae(lens, "standard", seed=5, normalize_activations="expected_average_only_in")
    theirs.save_inference_model(tmp_path)
    with pytest.warns(UserWarning, match="expects normalised inputs"):
        ours = SAE.load(tmp_path)
    _assert_equal(ours, lens.SAE.load_from_disk(tmp_path), _x(9, 12))


OLD: dict[str, dict[str, Any]] = {
    "standard": {"hook_point": "blocks.2.hook_resid_pre", "hook_point_head_index": None, "normalize_activations": False},
    "of heads": {"hook_name": "blocks.2.attn.hook_z", "normalize_activations": None},
    "layer norm": {"hook_name": "blocks.2.hook_resid_pre", "normalize_activations": "layer_norm", "architecture": "standard"},
    "topk": {"hook_name": "blocks.2.hook_resid_pre", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}},
    "jumprelu": {"hook_name": "blocks.2.hook_resid_pre", "architecture": "jumprelu", "apply_b_dec_to_input": False},
    "gated": {"hook_name": "blocks.2.hook_resid_pre", "architecture": "gated", "activation_fn": "relu"},
    "one head": {"hook_name": "blocks.2.attn.hook_q", "hook_head_index": 3, "sae_lens_version": "5.10.1"},
    "before a gain": {"hook_name": "blocks.2.ln2.hook_normalized"},
}


def _old_folder(folder: Path, random_sae: Any, **cfg: Any) -> None:
    """A folder as sae-lens wrote it before version 6: one flat cfg.json."""
    architecture = cfg.get("architecture", "standard")
    flat = {"d_in": 12, "d_sae": 40, "dtype": "torch.float32", "device": "cpu", "model_name": "gpt2", "context_size": 128}
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(flat | cfg))
    tensors = random_sae(architecture, 12, 40).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")


@pytest.mark.parametrize("kind", OLD)
def test_folders_from_before_version_6(kind: str, lens: Any, random_sae: Any, tmp_path: Path) -> None:
    _old_folder(tmp_path, random_sae, **OLD[kind])
    ours, theirs = SAE.load(tmp_path), lens.SAE.load_from_disk(tmp_path)
    _assert_equal(ours, theirs, _x(9, 3, 4) if kind == "of heads" else _x(9, 12))
    assert ours.cfg.model_name == "gpt2" and ours.cfg.context_size == 128 and ours.cfg.prepend_bos is True
    sites = {"of heads": Site.parse("heads.2"), "one head": None, "before a gain": None}
    assert ours.cfg.site == sites.get(kind, Site.parse("resid_pre.2"))
    ours.save(tmp_path / "new")
    if kind == "before a gain":
        assert lens.SAE.load_from_disk(tmp_path / "new").cfg.metadata.hook_name == OLD[kind]["hook_name"]
    _assert_equal(ours, lens.SAE.load_from_disk(tmp_path / "new"), _x(9, 3, 4) if kind == "of heads" else _x(9, 12))


def test_fine_tuned_scales_of_old_folders(lens: Any, random_sae: Any, tmp_path: Path) -> None:
    """sae-lens < 6 multiplied the codes by these factors in decode; sae-lens 6 accepts only factors of one."""
    _old_folder(tmp_path, random_sae, hook_name="blocks.2.hook_resid_pre")
    plain = SAE.load(tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    save_file({**load_file(path), "scaling_factor": torch.ones(40)}, path)
    _assert_equal(SAE.load(tmp_path), lens.SAE.load_from_disk(tmp_path), _x(9, 12))
    factor = _x(40).exp()
    save_file({**load_file(path), "scaling_factor": factor}, path)
    with pytest.raises(SAEFormatError, match="scaling_factor"):
        SAE.load(tmp_path)
    _old_folder(tmp_path, random_sae, hook_name="blocks.2.hook_resid_pre", finetuning_scaling_factor=True)
    save_file({**load_file(path), "scaling_factor": factor}, path)
    ours = SAE.load(tmp_path)
    acts = plain.encode_dense(_x(9, 12))
    torch.testing.assert_close(ours.encode_dense(_x(9, 12)), acts)
    torch.testing.assert_close(ours.decode(acts), plain.decode(acts * factor))


def test_thresholds_in_logarithms(lens: Any, tmp_path: Path) -> None:
    theirs = _training_sae(lens, "jumprelu", seed=4)
    theirs.save_model(tmp_path)
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    tensors["log_threshold"] = tensors.pop("threshold").log()
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    _assert_equal(SAE.load(tmp_path), theirs, _x(9, 12))


def test_an_old_activation_that_sae_lens_mistakes_for_relu(lens: Any, random_sae: Any, tmp_path: Path) -> None:
    _old_folder(tmp_path, random_sae, hook_name="blocks.2.hook_resid_pre", activation_fn_str="tanh-relu")
    with pytest.raises(SAEFormatError, match="tanh-relu"):
        SAE.load(tmp_path)


@pytest.mark.parametrize("architecture", SINGLE)
def test_half_precision_files(architecture: str, lens: Any, random_sae: Any, tmp_path: Path) -> None:
    sae = random_sae(architecture, 12, 40).bfloat16()
    sae.save(tmp_path)
    ours = SAE.load(tmp_path)
    assert ours.dtype == torch.bfloat16 and ours.fingerprint() == sae.fingerprint()
    assert lens.SAE.load_from_disk(tmp_path).dtype == torch.bfloat16
    wide = SAE.load(tmp_path, dtype="float32")
    _assert_equal(wide, lens.SAE.load_from_disk(tmp_path, dtype="float32"), _x(9, 12))
    assert wide.cfg.dtype == "float32"


def test_sparsity_is_stored_as_in_sae_lens(random_sae: Any, tmp_path: Path) -> None:
    sae, fractions = random_sae("topk", 12, 40), torch.linspace(0, 1, 40)
    sae.save(tmp_path, sparsity=fractions)
    stored = load_file(tmp_path / "sparsity.safetensors")["sparsity"]
    torch.testing.assert_close(stored, (fractions + 1e-10).log10())
    found = load_sparsity(tmp_path)
    assert found is not None
    torch.testing.assert_close(found, fractions)
    sae.save(tmp_path)
    assert load_sparsity(tmp_path) is None  # no file of the previous SAE remains


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_sae: Any) -> Path:
    """A hub cache on disk with one repository of a listed release, without a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--jbloom--GPT2-Small-SAEs-Reformatted"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    for layer in (8, 9):
        sae = random_sae("standard", 12, 40, seed=layer, site=Site.parse(f"resid_pre.{layer}"), model_name="gpt2")
        sae.save(snapshot / f"blocks.{layer}.hook_resid_pre", sparsity=torch.full((40,), 0.1))
    return snapshot


def test_a_published_sae(lens: Any, hub_cache: Path, random_sae: Any) -> None:
    ours = SAE.load("gpt2-small-res-jb/blocks.8.hook_resid_pre")
    theirs = lens.SAE.from_pretrained("gpt2-small-res-jb", "blocks.8.hook_resid_pre")
    _assert_equal(ours, theirs, _x(9, 12))
    assert ours.cfg.site == Site.parse("resid_pre.8") and ours.cfg.model_name == "gpt2"
    assert SAE.load("gpt2-small-res-jb/blocks.9.hook_resid_pre", dtype="bfloat16").dtype == torch.bfloat16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sae-lens warns if the release is not given
        direct = SAE.load("jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre")
    assert torch.equal(direct.W_enc, ours.W_enc)


def test_a_published_sae_that_cannot_be_fetched(lens: Any, hub_cache: Path) -> None:
    with pytest.raises(SAENotFound, match=r"is not in the cache, and HF_HUB_OFFLINE is set"):
        SAE.load("gpt2-small-res-jb/blocks.3.hook_resid_pre")


def test_hub_is_offline_in_tests() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_copy_is_a_copy(random_sae: Any) -> None:
    sae = random_sae("topk", 12, 40)
    other = copy.deepcopy(sae)
    other.W_enc.zero_()
    other.double()
    assert sae.W_enc.any() and sae.cfg.dtype == "float32" and other.W_enc.T.is_contiguous()
