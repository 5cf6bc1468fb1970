"""Crosscoders and cross-layer transcoders against dense float64 formulas, site by site, and their files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from saekit.errors import ConfigError, SAEFormatError, StoreMismatch
from saekit.names.site import Site
from saekit.names.site_map import SiteMap
from saekit.sae import SAE, CrossCoder, SAEConfig

KINDS = ("crosscoder", "jumprelu_crosscoder", "clt", "jumprelu_clt")
F, WIDTH, L = 30, 7, 3


def _made(architecture: str, seed: int = 0) -> CrossCoder:
    clt = architecture.endswith("clt")
    reads = tuple(Site("mlp_in" if clt else "resid_post", layer) for layer in range(L))
    widths = (WIDTH,) * L if clt else (WIDTH, 4, 9)
    writes, widths_out = (tuple(Site("mlp_out", layer) for layer in range(L)), (5, 6, 8)) if clt else (reads, widths)
    cfg = SAEConfig(
        architecture,
        d_in=sum(widths),
        d_out=sum(widths_out),
        n_latents=F,
        site_map=SiteMap(reads, writes),
        widths=widths,
        widths_out=widths_out,
        model_name="m",
    )
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in cfg.shapes().items()}
    if clt:
        for layer, start in enumerate((0, 5, 11)):
            tensors["W_dec"][layer * F // L : (layer + 1) * F // L, :start] = 0
    return CrossCoder(cfg, tensors)


def _acts(cross: CrossCoder, n: int = 50) -> dict[Site, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {site: torch.randn(n, width, generator=generator) for site, width in zip(cross.cfg.sites, cross.cfg.widths)}


def _reference(cross: CrossCoder, acts: dict[Site, Tensor]) -> tuple[Tensor, dict[Site, Tensor]]:
    """The formulas of the papers: sums over sites, in float64."""
    cfg, t = cross.cfg, {name: tensor.double() for name, tensor in cross.state_dict().items()}
    if cfg.layered:
        own = F // L
        parts = [acts[site].double() @ t["W_enc"][:, i * own : (i + 1) * own] for i, site in enumerate(cfg.sites)]
        h = torch.cat(parts, 1) + t["b_enc"]
    else:
        h = sum(acts[site].double() @ W for site, W in zip(cfg.sites, t["W_enc"].split(cfg.widths))) + t["b_enc"]
    f = torch.relu(h) * (h > t["threshold"]) if "threshold" in t else torch.relu(h)
    written, first = {}, 0
    for j, (site, width) in enumerate(zip(cfg.sites_out, cfg.widths_out)):
        until = (j + 1) * F // L if cfg.layered else F
        written[site] = f[:, :until] @ t["W_dec"][:until, first : first + width] + t["b_dec"][first : first + width]
        first += width
    return f, written


@pytest.mark.parametrize("architecture", KINDS)
def test_codes_and_every_site_are_those_of_the_formula_and_of_the_file(tmp_path: Path, architecture: str) -> None:
    cross = _made(architecture)
    acts = _acts(cross)
    f, written = _reference(cross, acts)
    cross.save(tmp_path)
    loaded = SAE.load(tmp_path)
    assert isinstance(loaded, CrossCoder) and loaded.fingerprint() == cross.fingerprint()
    assert (loaded.cfg.reads, loaded.cfg.writes, loaded.cfg.widths) == (cross.cfg.reads, cross.cfg.writes, cross.cfg.widths)
    for each in (cross, loaded):
        code = each.encode(acts)
        torch.testing.assert_close(code.double(), f, atol=1e-5, rtol=1e-5)
        found = each.decode_sites(code)
        assert list(found) == list(each.cfg.sites_out)
        for site, y in written.items():
            torch.testing.assert_close(found[site].double(), y, atol=1e-4, rtol=1e-5)
        x = each.side_by_side(acts)
        torch.testing.assert_close(each(x), torch.cat(list(found.values()), 1))
        chosen = [29, 3, 17, 3]
        torch.testing.assert_close(each.encode_features(x, chosen), code[:, chosen])
        torch.testing.assert_close(each.encode_sparse(x).dense(F), code)


@pytest.mark.parametrize("architecture", KINDS)
def test_scales_are_folded_for_each_site(architecture: str) -> None:
    cross = _made(architecture)
    acts = _acts(cross)
    reads, writes = (2.0, 3.0, 0.5), (7.0, 0.1, 4.0)
    scaled = {site: x * scale for (site, x), scale in zip(acts.items(), reads)}
    code, written = cross.encode(scaled), cross.decode_sites(cross.encode(scaled))
    norms = cross.decoder_norms()
    cross.fold_scales(reads, writes)
    torch.testing.assert_close(cross.encode(acts), code, atol=1e-5, rtol=1e-4)
    for (site, y), scale in zip(cross.decode_sites(cross.encode(acts)).items(), writes):
        torch.testing.assert_close(y * scale, written[site], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cross.decoder_norms(), norms)  # the norms stay comparable across sites


def test_relative_norms_identify_shared_latents() -> None:
    cross = _made("crosscoder")
    cross.W_dec[0, WIDTH:] = 0
    cross.W_dec[1] = 0
    shares = cross.relative_norms()
    torch.testing.assert_close(shares[:2], torch.tensor([[1.0, 0, 0], [0, 0, 0]]))
    row = cross.W_dec[7]
    norms = torch.stack([row[:7].norm(), row[7:11].norm(), row[11:].norm()])
    torch.testing.assert_close(shares[7], norms / norms.sum())


@pytest.mark.parametrize("architecture", ["clt", "jumprelu_clt"])
def test_a_single_layer_equals_its_part_of_the_whole(architecture: str) -> None:
    cross = _made(architecture)
    acts = _acts(cross)
    parts = [cross.written_by(layer, x) for layer, x in enumerate(acts.values())]
    torch.testing.assert_close(sum(parts) + cross.b_dec, cross(cross.side_by_side(acts)), atol=1e-4, rtol=1e-4)
    assert parts[2][:, :11].abs().max() == 0  # a layer does not write to earlier ones


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    cross = _made("crosscoder")
    acts = _acts(cross)
    with pytest.raises(StoreMismatch, match=r"at resid_post\.1, which is missing"):
        cross.encode({site: x for site, x in acts.items() if site.layer != 1})
    with pytest.raises(StoreMismatch, match=r"at resid_post\.0, which has 8 numbers"):
        cross.encode({**acts, Site("resid_post", 0): torch.zeros(50, 8)})
    with pytest.raises(StoreMismatch, match="several sites"):
        cross.writes_at(Site("resid_post", 0))
    with pytest.raises(ConfigError, match=r"do not make 21 numbers"):
        SAEConfig("crosscoder", d_in=21, n_latents=4, site_map=cross.cfg.site_map, widths=(7, 4, 9))
    with pytest.raises(ConfigError, match=r"topk is the architecture of a SAE, and resid_post\.0\.\.2 is for a crosscoder"):
        SAEConfig("topk", d_in=21, n_latents=4, k=2, site_map=cross.cfg.site_map, widths=(7, 4, 10))
    with pytest.raises(ConfigError, match=r"cannot share 31 latents"):
        dataclasses.replace(_made("clt").cfg, n_latents=31)
    cross.save(tmp_path)
    raw = json.loads((tmp_path / "cfg.json").read_text())
    del raw["widths"]
    (tmp_path / "cfg.json").write_text(json.dumps(raw))
    with pytest.raises(SAEFormatError, match="widths"):
        SAE.load(tmp_path)
