"""Every architecture against a dense float64 oracle (values and gradients), and its other forms against each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from saekit.errors import ConfigError, SAEFormatError, StoreMismatch, UnknownRef
from saekit.names.site import Site
from saekit.names.site_map import SiteMap
from saekit.sae import ARCHITECTURES, SAE, SAEConfig, SparseCode
from saekit.sae.config import NORMALIZATIONS

SINGLE = {name: row for name, row in ARCHITECTURES.items() if not row.kind.crosses and row.options is None}

each_architecture = pytest.mark.parametrize("architecture", SINGLE)
each_normalization = pytest.mark.parametrize("normalization", ["none", "layer_norm", "constant_norm_rescale"])


def _x(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _close(ours: torch.Tensor, theirs: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(ours.detach().double().numpy(), theirs, rtol=tolerance, atol=tolerance)


@each_architecture
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(0, 9),
    d_in=st.integers(3, 20),
    n_latents=st.integers(1, 50),
    normalization=st.sampled_from(NORMALIZATIONS),
    centred=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_equals_the_float64_oracle(
    architecture: str,
    random_sae: Any,
    oracle: Any,
    rows: int,
    d_in: int,
    n_latents: int,
    normalization: str,
    centred: bool,
    seed: int,
) -> None:
    sae = random_sae(architecture, d_in, n_latents, seed=seed, normalize_activations=normalization, apply_b_dec_to_input=centred)
    x = _x(rows, d_in, seed=seed)
    truth = oracle(sae, x)
    assume(truth.margin > 1e-5)  # at a tie, rounding decides which latents fire
    dense, sparse = sae.encode_dense(x), sae.encode_sparse(x)
    _close(dense, truth.acts)
    assert torch.equal(sparse.dense(n_latents), dense)
    _close(sae(x), truth.out)
    _close(sae.decode(sparse, x), truth.out)
    _close(sae.decode(dense, x), truth.out)
    if not sae.cfg.normalizes or sae.cfg.transcodes:
        _close(sae.decode(sparse), truth.latents_only)
        _close(sae.decode(dense), truth.latents_only)


@each_architecture
@each_normalization
def test_gradients(architecture: str, normalization: str, random_sae: Any, oracle: Any) -> None:
    sae = random_sae(architecture, 5, 12, seed=3, dtype="float64", normalize_activations=normalization)
    x = _x(4, 5, dtype=torch.float64).requires_grad_()
    assert oracle(sae, x).margin > 1e-4
    assert torch.autograd.gradcheck(sae.encode_dense, (x,))
    assert torch.autograd.gradcheck(lambda x: sae.encode_sparse(x).values, (x,))
    assert torch.autograd.gradcheck(lambda x: sae.encode_features(x, [7, 0, 7]), (x,))
    assert torch.autograd.gradcheck(sae, (x,))
    code = sae.encode_sparse(x.detach())
    values = code.values.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda values: sae.decode(SparseCode(values, code.indices), x.detach()), (values,))
    acts = sae.encode_dense(x.detach()).requires_grad_()
    assert torch.autograd.gradcheck(lambda acts: sae.decode(acts, x.detach()), (acts,))


@each_architecture
def test_gradients_reach_the_weights_when_asked_for(architecture: str, random_sae: Any) -> None:
    sae = random_sae(architecture, 5, 12)
    assert not any(p.requires_grad for p in sae.parameters())
    sae.requires_grad_()
    sae(_x(30, 5)).square().sum().backward()
    steps = ("threshold", "b_gate")  # these only decide which latents fire; their derivative is zero, and trainers estimate it
    assert all(p.grad is not None and p.grad.any() for name, p in sae.named_parameters() if name not in steps)


@each_architecture
@settings(max_examples=25, deadline=None)
@given(features=st.lists(st.integers(0, 39), max_size=6), seed=st.integers(0, 10**6), centred=st.booleans())
def test_some_features_are_columns_of_all(
    architecture: str, random_sae: Any, oracle: Any, features: list[int], seed: int, centred: bool
) -> None:
    sae = random_sae(architecture, 16, 40, seed=seed, apply_b_dec_to_input=centred)
    x = _x(7, 16, seed=seed)
    assume(oracle(sae, x).margin > 1e-5)
    torch.testing.assert_close(sae.encode_features(x, features), sae.encode_dense(x)[:, features], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sae.feature_vectors(features), sae.W_dec[features], rtol=0, atol=0)
    assert sae.feature_vectors() is sae.W_dec


class _Largest(TorchDispatchMode):
    """Records the largest tensor that an operation computes, except views of the weights."""

    def __init__(self, sae: SAE) -> None:
        super().__init__()
        self.numel, self.weights = 0, {p.untyped_storage().data_ptr() for p in sae.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.weights:
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("architecture", [name for name, row in SINGLE.items() if "topk" not in row.activation])
def test_one_feature_costs_one_column_whatever_the_width(architecture: str, random_sae: Any) -> None:
    x = _x(7, 16)
    for n_latents in (100, 20_000):
        sae = random_sae(architecture, 16, n_latents)
        with _Largest(sae) as largest:
            sae.encode_features(x, [3, n_latents - 1])
        assert largest.numel == x.numel()


@pytest.mark.parametrize("architecture", ["jumprelu", "jumprelu_transcoder", "gated"])
def test_at_the_threshold_nothing_fires(architecture: str, random_sae: Any) -> None:
    sae = random_sae(architecture, 4, 3)
    sae.W_enc.zero_()
    if architecture == "gated":
        sae.get_parameter("b_gate").copy_(torch.tensor([0.0, 0.25, -0.25]))
        sae.get_parameter("b_mag").fill_(0.5)
    else:
        sae.get_parameter("b_enc").fill_(0.5)
        sae.get_parameter("threshold").copy_(torch.tensor([0.5, 0.25, 0.75]))
    assert sae.encode_dense(_x(1, 4)).tolist() == [[0.0, 0.5, 0.0]]


@pytest.mark.parametrize("value", [-0.5, 0.5])
def test_a_negative_threshold_passes_no_negative_value(value: float, random_sae: Any) -> None:
    sae = random_sae("jumprelu", 4, 3)
    sae.W_enc.zero_()
    sae.get_parameter("b_enc").fill_(value)
    sae.get_parameter("threshold").fill_(-1)
    assert sae.encode_dense(_x(1, 4)).tolist() == [[max(value, 0.0)] * 3]


def test_topk_codes_are_sparse_from_the_start(random_sae: Any) -> None:
    sae = random_sae("topk", 16, 5000, k=8)
    code = sae.encode(_x(3, 2, 16))
    assert isinstance(code, SparseCode)
    assert code.values.shape == code.indices.shape == (3, 2, 8)
    assert code.indices.dtype == torch.int64


@each_architecture
def test_sparse_codes_of_dense_architectures_are_packed(architecture: str, random_sae: Any) -> None:
    sae = random_sae(architecture, 6, 30)
    x = _x(50, 6)
    code, busiest = sae.encode_sparse(x), int((sae.encode_dense(x) != 0).sum(-1).max())
    assert code.values.shape[-1] == (sae.cfg.k if "topk" in sae.cfg.activation else busiest)


@each_architecture
def test_no_rows_and_nothing_firing(architecture: str, random_sae: Any) -> None:
    sae = random_sae(architecture, 6, 30)
    for name in ("b_enc", "b_gate"):
        if name in sae.state_dict():
            sae.get_parameter(name).fill_(-100)
    if architecture == "abstopk":
        sae.W_enc.zero_(), sae.get_parameter("b_enc").zero_()
    for x in (_x(0, 6), _x(4, 6)):
        code = sae.encode_sparse(x)
        assert code.values.shape[0] == len(x) and code.values.shape[1] >= 1 and not code.values.any()
        torch.testing.assert_close(sae.decode(code), sae.b_dec.expand(len(x), -1))


@each_architecture
@each_normalization
def test_any_leading_shape_and_heads(architecture: str, normalization: str, random_sae: Any) -> None:
    sae = random_sae(architecture, 12, 30, site=Site.parse("heads.2"), normalize_activations=normalization)
    x = _x(2, 5, 3, 4)  # batch, position, head, width of a head
    flat = x.reshape(10, 12)
    torch.testing.assert_close(sae.encode_dense(x), sae.encode_dense(flat).reshape(2, 5, 30))
    torch.testing.assert_close(sae.encode_sparse(x).dense(30), sae.encode_dense(flat).reshape(2, 5, 30))
    torch.testing.assert_close(sae.encode_features(x, [4, 9]), sae.encode_features(flat, [4, 9]).reshape(2, 5, 2))
    expected = sae(flat).reshape(2, 5, 15) if sae.cfg.transcodes else sae(flat).reshape(x.shape)
    torch.testing.assert_close(sae(x), expected)
    torch.testing.assert_close(sae.encode_dense(flat[0]), sae.encode_dense(flat)[0])  # a single token


@each_architecture
@each_normalization
def test_scale_multiplies_changes_of_the_code(architecture: str, normalization: str, random_sae: Any) -> None:
    sae = random_sae(architecture, 12, 30, dtype="float64", normalize_activations=normalization)
    x, change = _x(2, 5, 12, dtype=torch.float64), _x(2, 5, 30, seed=2, dtype=torch.float64)
    acts = sae.encode_dense(x)
    written = sae.decode(acts + change, x) - sae.decode(acts, x)
    torch.testing.assert_close(written, sae.scale(x) * change @ sae.feature_vectors())


@each_architecture
@settings(max_examples=10, deadline=None)
@given(scale=st.floats(0.01, 100), other=st.floats(0.01, 100), seed=st.integers(0, 1000))
def test_a_folded_scale_gives_the_same_codes(architecture: str, random_sae: Any, scale: float, other: float, seed: int) -> None:
    sae = random_sae(architecture, 6, 30, seed=seed, dtype="float64")
    x = _x(9, 6, dtype=torch.float64)
    acts, out = sae.encode_dense(scale * x), sae(scale * x) / (other if sae.cfg.transcodes else scale)
    assert sae.fold_scale(scale, other) is sae
    torch.testing.assert_close(sae.encode_dense(x), acts, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sae(x), out, rtol=1e-9, atol=1e-9)


@each_architecture
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_the_oracle(architecture: str, dtype: torch.dtype, random_sae: Any, oracle: Any) -> None:
    sae = random_sae(architecture, 8, 24).to(dtype)
    assert sae.cfg.dtype == str(dtype).removeprefix("torch.") and sae.dtype == dtype
    x = _x(20, 8)
    out = sae(x)
    assert out.dtype == dtype
    truth = oracle(sae, x)
    same = ((sae.encode_dense(x) != 0).numpy() == (truth.acts != 0)).all(-1)  # rounding rarely changes a decision
    assert same.mean() >= 0.7
    _close(out[torch.from_numpy(same)], truth.out[same], 0.05)


def test_the_encoder_keeps_its_latents_together_in_memory(random_sae: Any) -> None:
    sae = random_sae("jumprelu", 8, 24)
    for module in (sae, sae.to(torch.float64), random_sae("jumprelu", 8, 24).bfloat16()):
        assert module.W_enc.shape == (8, 24) and module.W_enc.T.is_contiguous()


def test_fingerprint_names_configuration_and_weights(random_sae: Any) -> None:
    prints = {
        random_sae("topk", 8, 24).fingerprint(),
        random_sae("topk", 8, 24, k=3).fingerprint(),
        random_sae("topk", 8, 24, seed=1).fingerprint(),
        random_sae("topk", 8, 24, apply_b_dec_to_input=False).fingerprint(),
        random_sae("topk", 8, 24, site=Site.parse("resid_post.1")).fingerprint(),
        random_sae("topk", 8, 24).bfloat16().fingerprint(),
    }
    assert len(prints) == 6
    assert random_sae("topk", 8, 24).fingerprint() in prints


def test_fingerprint_follows_every_change_of_a_weight(random_sae: Any) -> None:
    sae = random_sae("topk", 8, 24)
    tensors = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    found = [sae.fingerprint()]
    sae.W_dec[3, 2] += 1
    found.append(sae.fingerprint())
    sae.state_dict()["b_enc"].mul_(2)
    found.append(sae.fingerprint())
    sae.fold_scale(0.5)
    found.append(sae.fingerprint())
    sae.b_dec = torch.nn.Parameter(sae.b_dec + 1, requires_grad=False)
    found.append(sae.fingerprint())
    sae.bfloat16().float()
    found.append(sae.fingerprint())
    sae.cfg.site_map = SiteMap.parse("resid_post.1")
    found.append(sae.fingerprint())
    assert len(set(found)) == len(found)
    assert found[-1] == SAE(sae.cfg, sae.state_dict()).fingerprint() == sae.fingerprint()
    sae.cfg.site_map = None
    sae.load_state_dict(tensors)
    assert sae.fingerprint() == found[0]


def test_fingerprint_of_unchanged_weights_reads_them_once(random_sae: Any) -> None:
    class Reads(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen += "view" in str(func)
            return func(*args, **(kwargs or {}))

    sae = random_sae("topk", 8, 24)
    with Reads() as first:
        found = sae.fingerprint()
    with Reads() as second:
        assert sae.fingerprint() == found
    assert first.seen > 0 and second.seen == 0


@pytest.mark.parametrize("architecture", SINGLE)
def test_inputs_are_brought_to_the_weights(architecture: str, random_sae: Any) -> None:
    sae, x = random_sae(architecture, 8, 24), _x(5, 8)
    dense = sae.encode_dense(x)
    elsewhere = sae.to("meta")  # a device without sparse codes, since the number of firing latents is unknown there
    for found in (elsewhere._rows(x)[0], elsewhere.scale(x), elsewhere.decode(dense, x)):
        assert found.device.type == "meta" and len(found) == 5


def test_the_site_it_writes_to(random_sae: Any) -> None:
    site, out = Site.parse("mlp_in.1"), Site.parse("mlp_out.1")
    assert random_sae("topk", 8, 24).writes_at(site) == site
    assert random_sae("transcoder", 8, 24, site=site, site_out=out).writes_at(site) == out
    with pytest.raises(StoreMismatch, match=r"where it writes is unknown.*site_out"):
        random_sae("transcoder", 8, 24, site=site).writes_at(site)


def test_name_and_identity(random_sae: Any) -> None:
    sae = random_sae("topk", 8, 24, site=Site.parse("resid_post.1"))
    assert sae.name == "topk-24@resid_post.1"
    identity = sae.identity()
    assert identity["site"] == "resid_post.1" and identity["fingerprint"] == sae.fingerprint()


def test_wrong_inputs(random_sae: Any) -> None:
    sae = random_sae("jumprelu", 8, 24, normalize_activations="layer_norm")
    with pytest.raises(StoreMismatch, match="reads 8 numbers"):
        sae.encode(_x(3, 9))
    for features in ([24], [-1], [0, 99]):
        with pytest.raises(UnknownRef, match="0 to 23"):
            sae.encode_features(_x(3, 8), features)
        with pytest.raises(UnknownRef):
            sae.feature_vectors(features)
    with pytest.raises(ConfigError, match=r"decode\(code, x\)"):
        sae.decode(sae.encode(_x(3, 8)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"architecture": "topkk"},
        {"architecture": "topk"},
        {"architecture": "topk", "k": 0},
        {"architecture": "topk", "k": 25},
        {"architecture": "topk", "k": 2.5},
        {"n_latents": 0},
        {"d_in": -3},
        {"d_out": 9},
        {"dtype": "int8"},
        {"normalize_activations": "tanh"},
    ],
)
def test_impossible_configurations(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SAEConfig(**{"architecture": "standard", "d_in": 8, "n_latents": 24, **wrong})


def test_tensors_that_are_not_the_architectures(random_sae: Any) -> None:
    cfg, tensors = random_sae("standard", 8, 24).cfg, random_sae("jumprelu", 8, 24).state_dict()
    with pytest.raises(SAEFormatError, match="unexpected threshold"):
        SAE(cfg, tensors)
    with pytest.raises(SAEFormatError, match="missing W_dec"):
        SAE(cfg, {name: tensor for name, tensor in tensors.items() if name not in ("W_dec", "threshold")})
    with pytest.raises(SAEFormatError, match=r"b_enc has shape \(23,\)"):
        SAE(cfg, {**random_sae("standard", 8, 24).state_dict(), "b_enc": torch.zeros(23)})
