"""Matching pursuit, temporal SAEs and whitened checkpoints: values and gradients equal sae-lens's."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saekit.errors import ConfigError, SAEFormatError, StoreMismatch
from saekit.names.site import Site
from saekit.sae import SAE

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
RUNTIME = ("none", "constant_norm_rescale", "layer_norm")


@pytest.fixture(scope="module")
def lens() -> Any:
    import sae_lens

    return sae_lens


def _x(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _randomize(theirs: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in theirs.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5


def _theirs(lens: Any, architecture: str, seed: int, **cfg: Any) -> Any:
    heads = cfg.pop("at_heads", False)
    theirs = lens.SAE.from_dict(
        {
            "architecture": architecture,
            "d_in": 12,
            "d_sae": 48,
            "reshape_activations": "hook_z" if heads else "none",
            "metadata": {"hook_name": "blocks.2.attn.hook_z" if heads else "blocks.2.hook_resid_post", "model_name": "gpt2"},
            **cfg,
        }
    )
    _randomize(theirs, seed)
    return theirs


def _there_and_back(theirs: Any, lens: Any) -> tuple[SAE, SAE, Any]:
    """Ours from its folder, ours from our folder, and theirs from our folder."""
    with TemporaryDirectory() as folder:
        theirs.save_model(Path(folder) / "a")
        ours = SAE.load(Path(folder) / "a")
        ours.save(Path(folder) / "b")
        return ours, SAE.load(Path(folder) / "b"), lens.SAE.load_from_disk(Path(folder) / "b")


def _assert_equal(ours: SAE, theirs: Any, x: torch.Tensor, decoded: Any = None) -> None:
    """Codes, reconstructions and their gradients with respect to the input."""
    ours_x, theirs_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    acts = theirs.encode(theirs_x)
    found = ours.encode_dense(ours_x)
    torch.testing.assert_close(found, acts, **CLOSE)
    torch.testing.assert_close(ours.encode_features(x, [5, 0, 5]), acts.detach()[..., [5, 0, 5]], **CLOSE)
    torch.testing.assert_close(ours.encode_sparse(x).dense(ours.cfg.n_latents), acts.detach(), **CLOSE)
    weight = _x(*acts.shape, seed=9)
    (acts * weight).sum().backward()
    (found * weight).sum().backward()
    torch.testing.assert_close(ours_x.grad, theirs_x.grad, **CLOSE)
    ours_x, theirs_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    there, here = theirs(theirs_x), ours(ours_x)
    torch.testing.assert_close(here, there, **CLOSE)
    torch.testing.assert_close(x - here, x - there, **CLOSE)
    weight = _x(*there.shape, seed=9)
    (there * weight).sum().backward()
    (here * weight).sum().backward()
    torch.testing.assert_close(ours_x.grad, theirs_x.grad, **CLOSE)


@settings(max_examples=25, deadline=None)
@given(
    normalization=st.sampled_from((*RUNTIME, "expected_average_only_in")),
    centred=st.booleans(),
    threshold=st.sampled_from((0.0, 0.3, 1.0)),
    iterations=st.sampled_from((None, 1, 3, 7)),
    stops=st.booleans(),
    at_heads=st.booleans(),
    seed=st.integers(0, 1000),
)
@pytest.mark.filterwarnings("ignore:.*expects normalised inputs")
def test_matching_pursuit(
    lens: Any,
    normalization: str,
    centred: bool,
    threshold: float,
    iterations: int | None,
    stops: bool,
    at_heads: bool,
    seed: int,
) -> None:
    cfg = {"residual_threshold": threshold, "max_iterations": iterations, "stop_on_duplicate_support": stops}
    cfg |= {"normalize_activations": normalization, "apply_b_dec_to_input": centred, "at_heads": at_heads}
    theirs = _theirs(lens, "matching_pursuit", seed, **cfg)
    theirs.W_dec.data /= theirs.W_dec.data.norm(dim=-1, keepdim=True)
    x = _x(5, 3, 4, seed=seed) if at_heads else _x(5, 12, seed=seed)
    for ours, again in zip(_there_and_back(theirs, lens)[:2], (theirs, _there_and_back(theirs, lens)[2])):
        _assert_equal(ours, again, x)
        assert ours.cfg.site == Site.parse("heads.2" if at_heads else "resid_post.2")
    assert "W_enc" not in ours.state_dict() and torch.equal(ours.W_enc, ours.W_dec.T)


def test_matching_pursuit_of_rows_that_are_zero_or_not_finite(lens: Any) -> None:
    ours = _there_and_back(_theirs(lens, "matching_pursuit", 3), lens)[0]
    x = torch.stack([torch.zeros(12), _x(12), torch.full((12,), torch.nan)])
    code = ours.encode_sparse(x - 0.0)
    assert code.rows.values_N[-1].isnan() and not code.rows.values_N[:-1].isnan().any()
    assert ours.encode_sparse(x[:0]).dense(48).shape == (0, 48)


@settings(max_examples=25, deadline=None)
@given(
    normalization=st.sampled_from((*RUNTIME, "constant_scalar_rescale")),
    centred=st.booleans(),
    tied=st.booleans(),
    kind=st.sampled_from((("topk", 5), ("topk", None), ("relu", None))),
    layers=st.integers(1, 2),
    at_heads=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_temporal(
    lens: Any, normalization: str, centred: bool, tied: bool, kind: tuple[str, int | None], layers: int, at_heads: bool, seed: int
) -> None:
    cfg: dict[str, Any] = {"n_heads": 2, "bottleneck_factor": 4, "n_attn_layers": layers, "tied_weights": tied}
    cfg |= {"sae_diff_type": kind[0], "kval_topk": kind[1], "activation_normalization_factor": 0.3, "at_heads": at_heads}
    theirs = _theirs(lens, "temporal", seed, normalize_activations=normalization, apply_b_dec_to_input=centred, **cfg)
    x = _x(2, 7, 3, 4, seed=seed) if at_heads else _x(2, 7, 12, seed=seed)
    ours, again, there = _there_and_back(theirs, lens)
    _assert_equal(ours, theirs, x)
    _assert_equal(again, there, x)
    if normalization in ("none", "constant_scalar_rescale") and not at_heads:
        acts = theirs.encode(x)
        torch.testing.assert_close(ours.decode(acts), theirs.decode(acts), **CLOSE)
        torch.testing.assert_close(ours.decode(ours.encode_sparse(x)), theirs.decode(acts), **CLOSE)


def test_temporal_saes_read_whole_contexts(lens: Any) -> None:
    ours = _there_and_back(_theirs(lens, "temporal", 1, n_heads=2, bottleneck_factor=4), lens)[0]
    with pytest.raises(StoreMismatch, match=r"whole contexts.*\(9, 12\)"):
        ours.encode_sparse(_x(9, 12))
    with pytest.raises(ConfigError, match="cannot be folded"):
        ours.fold_scale(2.0)
    whole, start = _x(1, 8, 12), ours.encode_dense(_x(1, 8, 12)[:, :5])
    torch.testing.assert_close(ours.encode_dense(whole)[:, :5], start, **CLOSE)  # no token reads a later one


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("matching_pursuit", {"max_iterations": 0}, "max_iterations=0"),
        ("matching_pursuit", {"residual_threshold": "low"}, "residual_threshold='low'"),
        ("matching_pursuit", {"stop_on_duplicate_support": 1}, "stop_on_duplicate_support=1"),
        ("temporal", {"n_heads": 7}, "do not divide"),
        ("temporal", {"sae_diff_type": "jumprelu"}, "sae_diff_type"),
        ("temporal", {"kval_topk": 49}, "kval_topk=49"),
        ("temporal", {"n_attn_layers": 2}, "missing attn_layers.1"),
        ("temporal", {"normalize_activations": "batch"}, "no normalize_activations"),
    ],
)
def test_impossible_options(architecture: str, changes: dict[str, Any], message: str, lens: Any, tmp_path: Path) -> None:
    cfg = {"n_heads": 2, "bottleneck_factor": 4} if architecture == "temporal" else {}
    _theirs(lens, architecture, 1, **cfg).save_model(tmp_path)
    raw = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(raw | changes))
    with pytest.raises(SAEFormatError, match=message):
        SAE.load(tmp_path)


def test_a_checkpoint_of_matching_pursuit_with_an_input_scale(lens: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoder_init_norm
        classes = lens.registry.get_sae_training_class("matching_pursuit")
        theirs = classes[0](classes[1](d_in=12, d_sae=48, normalize_activations="expected_average_only_in"))
    _randomize(theirs, 3)
    theirs.save_model(tmp_path / "checkpoint")
    (tmp_path / "checkpoint/activation_scaler.json").write_text('{"scaling_factor": 0.3, "has_whitening": false}')
    theirs.fold_activation_norm_scaling_factor(0.3)
    theirs.save_inference_model(tmp_path / "finished")
    ours = SAE.load(tmp_path / "checkpoint")
    _assert_equal(ours, lens.SAE.load_from_disk(tmp_path / "finished"), 3 * _x(9, 12))


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("rescales", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk"])
def test_checkpoints_that_were_trained_on_whitened_inputs(
    architecture: str, rescales: bool, centred: bool, lens: Any, tmp_path: Path
) -> None:
    from sae_lens.training.activation_scaler import ActivationScaler

    cfg: dict[str, Any] = {"normalize_activations": "covariance_whitening", "apply_b_dec_to_input": centred}
    cfg |= {"k": 5, "rescale_acts_by_decoder_norm": rescales} if "topk" in architecture else {}
    cfg |= {"matryoshka_widths": [10, 20, 40]} if "matryoshka" in architecture else {}
    classes = lens.registry.get_sae_training_class(architecture)
    theirs = classes[0](classes[1](d_in=12, d_sae=40, **cfg))
    _randomize(theirs, 4)
    if hasattr(theirs, "topk_threshold"):
        theirs.topk_threshold += 0.35
    if hasattr(theirs, "threshold"):
        theirs.threshold.data.abs_()
    scaler, data = ActivationScaler(), _x(500, 12) @ _x(12, 12, seed=2) + _x(12, seed=3)
    scaler.estimate_whitening(12, iter(data.split(100)), n_batches_for_norm_estimate=5)
    theirs.save_model(tmp_path / "checkpoint")
    scaler.save(str(tmp_path / "checkpoint/activation_scaler.json"))
    assert scaler.whitening is not None
    theirs.fold_activation_whitening(scaler.whitening.mean, scaler.whitening.matrix, scaler.whitening.inverse_matrix)
    theirs.save_inference_model(tmp_path / "finished")
    ours = SAE.load(tmp_path / "checkpoint")
    assert ours.cfg.normalize_activations == "none"
    _assert_equal(ours, lens.SAE.load_from_disk(tmp_path / "finished"), data[:9])


def test_a_damaged_whitening_is_refused(lens: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    classes = lens.registry.get_sae_training_class("standard")
    theirs = classes[0](classes[1](d_in=12, d_sae=40, normalize_activations="covariance_whitening"))
    theirs.save_model(tmp_path)
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": null, "has_whitening": true}')
    with pytest.warns(UserWarning, match="expects normalised inputs"):
        SAE.load(tmp_path)
    path = tmp_path / "activation_whitening.safetensors"
    for tensors, message in (
        ({"mean": torch.zeros(12)}, "has no matrix"),
        ({"mean": torch.zeros(12), "matrix": torch.eye(11), "inverse_matrix": torch.eye(12)}, "matrix in .* is not"),
        ({"mean": torch.full((12,), torch.nan), "matrix": torch.eye(12), "inverse_matrix": torch.eye(12)}, "mean in .* is not"),
    ):
        save_file(tensors, path)
        with pytest.raises(SAEFormatError, match=message):
            SAE.load(tmp_path)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "matching_pursuit"])
def test_the_gradient_is_zero_where_nothing_fires(architecture: str, random_sae: Any) -> None:
    sae = random_sae(architecture, 12, 40)
    for name in {"b_enc", "b_gate"} & set(sae.state_dict()):
        sae.get_parameter(name).fill_(-100)
    if architecture == "matching_pursuit":
        sae.W_dec.zero_()
    x = _x(3, 12).requires_grad_()
    assert not sae.encode_dense(x).any()
    (sae(x) * _x(3, 12, seed=2)).sum().backward()
    assert x.grad is not None and not x.grad.any()
