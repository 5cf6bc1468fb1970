"""A target model that is the source with its residual stream rotated: the map, vectors and SAEs have one right answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from saekit.errors import ConfigError, CorpusError, InterventionError, SAEFormatError, StoreMismatch
from saekit.evaluate.steering.stitched import measure_stitch
from saekit.lm import LanguageModel
from saekit.names.site import Site
from saekit.names.site_map import SiteMap
from saekit.sae import SAE
from saekit.sae.config import SAEConfig
from saekit.steer.stitch import Affine, End, Stitch, fit_stitch, paired, transfer_sae, transfer_vector
from saekit.steer.vectors import SteeringVector
from tests.kit.tiny import make_documents, make_lm

SITE = "resid_post.1"
TEXTS = [text for text in make_documents(80, seed=3) if text]
D = 16


def rotation() -> torch.Tensor:
    return torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(5)).double()).Q.float()


@torch.no_grad()
def rotated() -> LanguageModel:
    """The tiny model with every residual r in place of x at R x. RMSNorm without weights commutes with rotations."""
    lm, R = make_lm(), rotation()
    for name, weight in lm.model.named_parameters():
        if any(part in name for part in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed", "lm_head")):
            weight.copy_(weight @ R.T)
        elif "o_proj" in name or "down_proj" in name:
            weight.copy_(R @ weight)
    return lm


@pytest.fixture(scope="module")
def ends() -> tuple[End, End]:
    return End(make_lm(), SITE), End(rotated(), SITE)


@pytest.fixture(scope="module")
def stitch(ends: tuple[End, End]) -> Stitch:
    return fit_stitch(*ends, TEXTS[:60])


def test_the_rotation_is_recovered(ends: tuple[End, End], stitch: Stitch) -> None:
    R = rotation()
    torch.testing.assert_close(stitch.up.weight, R, atol=2e-5, rtol=0)
    torch.testing.assert_close(stitch.down.weight, R.T, atol=2e-5, rtol=0)
    torch.testing.assert_close(stitch.up.bias, torch.zeros(D), atol=2e-5, rtol=0)
    found = measure_stitch(stitch, *ends, TEXTS[60:])
    assert max(found[name] for name in ("fvu_up", "fvu_down", "fvu_there_and_back")) < 1e-9
    assert found["ce_stitched"] == pytest.approx(found["ce"], abs=1e-6) and found["ce_mean"] > found["ce"] + 1e-3
    assert found["ce_recovered"] == pytest.approx(1, abs=1e-3) and found["kl"] == pytest.approx(0, abs=1e-7)


def test_least_squares_equal_numpy_between_unlike_sites(ends: tuple[End, End]) -> None:
    source, target = End(ends[0].lm, "resid_post.0"), End(ends[1].lm, "mlp_out.1")
    stitch = fit_stitch(source, target, TEXTS)
    x, y = (torch.cat(parts).double() for parts in zip(*paired(source, target, TEXTS), strict=True))
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    for inputs, outputs, found in ((x, y, stitch.up), (y, x, stitch.down)):
        solution = torch.linalg.lstsq(torch.cat([inputs, ones], 1), outputs).solution
        torch.testing.assert_close(found.weight.double(), solution[:-1].T, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.bias.double(), solution[-1], atol=1e-5, rtol=1e-5)
    found = measure_stitch(stitch, source, target, TEXTS)
    assert found["fvu_up"] == pytest.approx(float((y - stitch.up(x)).var(0, correction=0).sum() / y.var(0, correction=0).sum()))
    assert found["tokens"] == len(x) == stitch.facts["tokens"]
    with_ridge = fit_stitch(source, target, TEXTS, ridge=10.0)
    assert with_ridge.up.weight.norm() < 0.5 * stitch.up.weight.norm()


def test_the_stitched_model_equals_plain_hooks(ends: tuple[End, End]) -> None:
    """Mapped activations stand at ordinary tokens alone; the loss is that of transformers."""
    source, target = End(ends[0].lm, "resid_post.0"), End(ends[1].lm, SITE)
    stitch = fit_stitch(source, target, TEXTS[:20])
    text = TEXTS[0]
    ids = torch.tensor([target.lm.text.ids([text])[0]])
    x = source.lm.run(ids, read=["resid_post.0"])["resid_post.0"]

    def replace(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        new = stitch.up(x)
        new[:, 0] = output[:, 0]
        return new

    block = target.lm.model.model.layers[1]
    hook = block.register_forward_hook(replace)
    logits = target.lm.model(ids).logits
    hook.remove()
    # Predictions made at ordinary tokens, that is, from the second token on.
    expected = torch.nn.functional.cross_entropy(logits[0, 1:-1].detach(), ids[0, 2:])
    assert measure_stitch(stitch, source, target, [text])["ce_stitched"] == pytest.approx(float(expected), rel=1e-5)


def test_a_vector_is_carried_without_the_bias(ends: tuple[End, End], stitch: Stitch) -> None:
    values = torch.randn(D, generator=torch.Generator().manual_seed(1))
    vector = SteeringVector(
        values, Site.parse(SITE), {"method": "diffmean", "fingerprint": ends[0].lm.fingerprint(), "model": "a"}
    )
    carried = transfer_vector(stitch, vector)
    torch.testing.assert_close(carried.values, rotation() @ values, atol=1e-4, rtol=0)
    carried.check(ends[1].lm)
    shifted = Stitch(Affine(stitch.up.weight, torch.ones(D)), stitch.down, stitch.source, stitch.target, stitch.facts)
    assert torch.equal(transfer_vector(shifted, vector).values, carried.values)
    # Steering the rotated model by the carried vector is steering the model by the vector.
    prompts = [ends[0].lm.text.ids([TEXTS[1]])[0]]
    runs = [
        end.lm.run(torch.tensor(prompts), edits=each.intervention("0.8raw").bind(end.lm), logits="all").logits
        for end, each in zip(ends, (vector, carried), strict=True)
    ]
    torch.testing.assert_close(runs[0], runs[1], atol=1e-4, rtol=1e-4)
    other = SteeringVector(values, Site.parse(SITE), {"fingerprint": make_lm(seed=9).fingerprint()})
    with pytest.raises(StoreMismatch, match="made with a model"):
        transfer_vector(stitch, other)
    with pytest.raises(InterventionError, match=r"at resid_post.0"):
        transfer_vector(stitch, SteeringVector(values, Site.parse("resid_post.0")))


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
@pytest.mark.parametrize("centred", [True, False])
def test_an_sae_has_the_same_codes_on_the_other_model(
    ends: tuple[End, End], stitch: Stitch, architecture: str, centred: bool, tmp_path: Path
) -> None:
    k = 5 if architecture == "topk" else None
    cfg = SAEConfig(architecture, D, 40, k=k, apply_b_dec_to_input=centred, site_map=SiteMap.parse(SITE))
    random = torch.Generator().manual_seed(2)
    tensors = {name: torch.randn(shape, generator=random) / 3 for name, shape in cfg.shapes().items()}
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].abs()
    sae = SAE(cfg, tensors)
    carried = transfer_sae(stitch, sae)
    x, y = (torch.cat(parts) for parts in zip(*paired(*ends, TEXTS[:20]), strict=True))
    codes, there = sae.encode_dense(x), carried.encode_dense(y)
    close = (codes - there).abs() < 1e-4
    assert close.double().mean() > 0.999  # a threshold may fall between two roundings
    torch.testing.assert_close(carried.decode(codes), sae.decode(codes) @ rotation().T, atol=1e-4, rtol=1e-4)
    carried.save(tmp_path / "sae")
    loaded = SAE.load(tmp_path / "sae")
    assert str(loaded.cfg.reads[0]) == SITE and loaded.cfg.metadata["stitched_from"]["site"] == SITE


def test_dictionaries_that_cannot_be_carried(stitch: Stitch) -> None:
    gated = SAE(SAEConfig("gated", D, 8))
    with pytest.raises(SAEFormatError, match="gated"):
        transfer_sae(stitch, gated)
    with pytest.raises(SAEFormatError, match="transcoder"):
        transfer_sae(stitch, SAE(SAEConfig("transcoder", D, 8)))
    with pytest.raises(SAEFormatError, match="cannot be carried"):
        transfer_sae(stitch, SAE(SAEConfig("standard", D, 8, normalize_activations="layer_norm")))
    with pytest.raises(StoreMismatch, match=r"resid_post.0"):
        transfer_sae(stitch, SAE(SAEConfig("standard", D, 8, site_map=SiteMap.parse("resid_post.0"))))
    with pytest.raises(StoreMismatch, match="12 numbers"):
        transfer_sae(stitch, SAE(SAEConfig("standard", 12, 8)))


def test_files(stitch: Stitch, tmp_path: Path) -> None:
    path = tmp_path / "map.safetensors"
    stitch.save(path)
    loaded = Stitch.load(path)
    assert torch.equal(loaded.up.weight, stitch.up.weight) and torch.equal(loaded.down.bias, stitch.down.bias)
    assert (loaded.source, loaded.target, dict(loaded.facts)) == (stitch.source, stitch.target, dict(stitch.facts))
    with pytest.raises(InterventionError, match="ends in"):
        stitch.save(tmp_path / "map.pt")
    with pytest.raises(InterventionError, match="no file"):
        Stitch.load(tmp_path / "missing.safetensors")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InterventionError, match="changed"):
        Stitch.load(path)
    save_file({"x": torch.zeros(2)}, path, {"saekit": json.dumps({"format": "other"})})
    with pytest.raises(InterventionError, match="does not hold a stitch"):
        Stitch.load(path)


def test_bad_input(ends: tuple[End, End]) -> None:
    with pytest.raises(StoreMismatch, match="different tokenizers"):
        fit_stitch(ends[0], End(make_lm(bos=False), SITE), TEXTS)
    with pytest.raises(ConfigError, match="ridge"):
        fit_stitch(*ends, TEXTS, ridge=-1.0)
    with pytest.raises(CorpusError, match="fewer than two"):
        fit_stitch(*ends, ["w1"])
