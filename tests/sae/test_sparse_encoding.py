"""Thresholded architectures encode without a (tokens, latents) matrix and without losing a token."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from saekit.names.site_map import SiteMap
from saekit.sae import SAE, CrossCoder, SAEConfig
from saekit.sae.code import Code, SparseCode

_PEAK = """
import resource
import torch
from saekit.sae import SAE, SAEConfig, CrossCoder
torch.set_num_threads(1)
architecture, tokens, latents = {architecture!r}, {tokens}, {latents}
D = 16
place = {{}}
if architecture == "jumprelu_clt":
    place = dict(site_map="mlp_in.0..1->mlp_out.0..1", widths=(8, 8), widths_out=(8, 8))
cfg = SAEConfig(architecture, D, latents, k=32 if "topk" in architecture else None, **place)
generator = torch.Generator().manual_seed(0)
tensors = {{name: torch.randn(shape, generator=generator) / 4 for name, shape in cfg.shapes().items()}}
for name in ("b_enc", "b_gate"):  # few latents fire
    if name in tensors and "topk" not in architecture:
        tensors[name] = torch.full_like(tensors[name], -4.0)
if "threshold" in tensors:
    tensors["threshold"] = tensors["threshold"].abs()
sae = (CrossCoder if cfg.crosses else SAE)(cfg, tensors)
x = torch.randn(tokens, D, generator=generator)
sae.encode_sparse(x[:64]), sae(x[:64])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = sae.encode_sparse(x)
sae(x)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grown * 1024, len(code.rows.values_N))
"""


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "matryoshka", "abstopk", "jumprelu_clt"])
def test_memory_does_not_grow_with_tokens_times_latents(architecture: str) -> None:
    tokens, latents = 8192, 32768
    code = _PEAK.format(architecture=architecture, tokens=tokens, latents=latents)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, entries = map(int, done.stdout.split())
    matrix = 4 * tokens * latents  # 1 GiB
    assert 0 < entries < tokens * latents / 20
    assert grown < matrix / 5, f"{grown / 2**20:.0f} MiB"


def _dense_by_hand(sae: SAE, x: torch.Tensor) -> torch.Tensor:
    p = {name: tensor.double() for name, tensor in sae.state_dict().items()}
    pre = (x.double() - p["b_dec"]) @ p["W_enc"]
    if sae.cfg.activation == "gated":
        return ((pre + p["b_gate"]) > 0) * torch.relu(pre * p["r_mag"].exp() + p["b_mag"])
    pre = pre + p["b_enc"]
    return pre * (pre > (p["threshold"] if "threshold" in p else torch.zeros(())).clamp_min(0))


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "batchtopk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_equal_the_dense_formula(architecture: str, dtype: torch.dtype, random_sae: Any) -> None:
    """With enough rows and latents for the screened kernel, on CPUs that support it."""
    sae = random_sae(architecture, 48, 4096).to(dtype)
    x = torch.randn(200, 48, generator=torch.Generator().manual_seed(2), dtype=dtype)
    truth = _dense_by_hand(sae, x)
    found = sae.encode_sparse(x).dense(4096).double()
    differ = (found - truth).abs() > 1e-4  # a pre-activation within rounding of the threshold may fall on either side
    assert int(differ.sum()) <= 3 and bool(truth.any())


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_rows_that_are_not_finite_do_not_pass_silently(architecture: str, bad: float, random_sae: Any) -> None:
    sae = random_sae(architecture, 8, 40)
    x = torch.randn(5, 8)
    clean = sae.encode_sparse(x).dense(40)
    x[2, 3] = bad
    found = sae.encode_sparse(x)
    assert found.dense(40)[2].isnan().any() and sae(x)[2].isnan().all()
    others = [0, 1, 3, 4]
    assert torch.equal(found.dense(40)[others], clean[others])
    assert bool(sae(x)[others].isfinite().all())


def test_one_busy_token_does_not_pad_the_others(random_sae: Any) -> None:
    """A ragged code holds the firing latents only. Its padded (..., K) form is computed on demand."""
    sae = random_sae("standard", 8, 5000)
    sae.get_parameter("b_enc").fill_(-50)
    x = torch.zeros(1000, 8)
    x[0] = 1000.0
    code = sae.encode_sparse(x)
    assert 1000 < len(code.rows.values_N) < 5000
    assert len(code.rows) == 1000 and int(code.rows.start_B1[1]) == len(code.rows.values_N)
    assert code.values.shape == code.indices.shape == (1000, len(code.rows.values_N))


def test_a_code_has_two_equal_forms() -> None:
    values = torch.tensor([[[1.0, 2.0], [3.0, 0.0]]])
    indices = torch.tensor([[[4, 1], [0, 4]]])
    padded = SparseCode(values, indices)
    ragged = SparseCode.of_rows(Code(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4, 1, 0]), torch.tensor([0, 2, 3])), (1, 2))
    assert torch.equal(padded.dense(5), ragged.dense(5)) and padded.dense(5).shape == (1, 2, 5)
    assert torch.equal(ragged.values, values)
    for code in (padded, ragged):
        assert [each.tolist() for each in code.fired()] == [[0, 0, 1], [4, 1, 0], [1.0, 2.0, 3.0]]
    first, second = padded
    assert torch.equal(first, values) and torch.equal(second, indices)


def test_the_layers_of_a_transcoder_are_encoded_sparsely() -> None:
    place = SiteMap.parse("mlp_in.0..1->mlp_out.0..1")
    cfg = SAEConfig("jumprelu_clt", 6, 10, 4, site_map=place, widths=(3, 3), widths_out=(2, 2))
    generator = torch.Generator().manual_seed(0)
    clt = CrossCoder(cfg, {name: torch.randn(shape, generator=generator) for name, shape in cfg.shapes().items()})
    x = torch.randn(7, 6, generator=generator)
    pre = torch.cat([x[:, :3] @ clt.W_enc[:, :5], x[:, 3:] @ clt.W_enc[:, 5:]], 1) + clt.get_parameter("b_enc")
    truth = pre * (pre > clt.get_parameter("threshold").clamp_min(0))
    code = clt.encode_sparse(x)
    torch.testing.assert_close(code.dense(10), truth)
    torch.testing.assert_close(clt.encode_features(x, [9, 0, 4]), truth[:, [9, 0, 4]])
    for row in range(7):
        latents = code.rows.latents_N[code.rows.start_B1[row] : code.rows.start_B1[row + 1]]
        assert torch.equal(latents, latents.sort().values)
