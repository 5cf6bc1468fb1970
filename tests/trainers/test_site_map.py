"""Sites that dictionaries read and predict: site maps, and transcoders from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.activations import ActivationStore
from saekit.errors import ConfigError, StoreMismatch, UnknownSite
from saekit.names.site import Site
from saekit.sae import SAE
from saekit.sae.metrics import reconstruction
from tests.kit.memory import Memory
from trainers import SiteMap, TrainConfig, train

IN, OUT = Site("mlp_in", 1), Site("mlp_out", 1)
ARROW = "mlp_in.1->mlp_out.1"


def _layer(n: int, seed: int = 0) -> dict[Site, Tensor]:
    """Inputs and outputs of a small MLP, with different widths and scales and non-zero means."""
    weights = torch.Generator().manual_seed(7)
    W, V = torch.randn(6, 16, generator=weights), torch.randn(16, 4, generator=weights)
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)) + 1
    return {IN: x, OUT: 40 * torch.relu(x @ W) @ V + 300}


def _config(**settings: Any) -> TrainConfig:
    small = {"n_latents": 64, "l0": 16, "tokens": 60_000, "batch_size": 256, "lr": 3e-3}
    return TrainConfig(**{**small, **settings})  # type: ignore[arg-type]


def test_a_transcoder_reads_one_site_and_predicts_the_other(tmp_path: Path) -> None:
    heldout = Memory(_layer(2_000, seed=1), 500, epochs=1)
    sae = train(Memory(_layer(20_000), 256), _config(), tmp_path, site=ARROW, heldout=heldout, progress=False)
    assert (sae.cfg.site, sae.cfg.site_out) == (IN, OUT)
    assert (sae.cfg.d_in, sae.cfg.d_out) == (6, 4)
    fresh = _layer(2_000, seed=2)
    fvu = (sae(fresh[IN]) - fresh[OUT]).square().sum() / (fresh[OUT] - fresh[OUT].mean(0)).square().sum()
    assert fvu < 0.1
    assert reconstruction(sae, [fresh])["fvu"] == pytest.approx(fvu.item(), rel=1e-4)
    last = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
    assert f'"heldout/fvu": {reconstruction(sae, Memory(_layer(2_000, seed=1), 500, epochs=1))["fvu"]}' in last
    assert SAE.load(tmp_path).cfg.site_out == OUT


def test_equal_site_maps_are_one_run_and_another_target_is_another_run(tmp_path: Path) -> None:
    config = _config(tokens=2_000)
    first = train(Memory(_layer(2_000), 256), config, tmp_path, site=ARROW, progress=False)
    again = train(Memory(_layer(2_000), 256), config, tmp_path, site=IN, site_out=OUT, progress=False)
    assert again.fingerprint() == first.fingerprint()
    with pytest.raises(StoreMismatch, match=r"site_out was mlp_out\.1 and is nothing now"):
        train(Memory(_layer(2_000), 256), config, tmp_path, site=IN, progress=False)


def test_a_store_is_read_at_both_sites(tmp_path: Path, stories_lm: Any, tinystories_path: Path) -> None:
    from saekit.activations import Corpus, write_store

    store: ActivationStore = write_store(
        tmp_path / "store", stories_lm, [IN, OUT], Corpus.open(str(tinystories_path)), n_tokens=20_000, progress=False
    )
    config = _config(n_latents=256, tokens=200_000)
    sae = train(store, config, tmp_path / "sae", site=ARROW, lm=stories_lm, progress=False)
    tokens, mask = stories_lm.encode(["Once upon a time there was a dog. He liked to run in the park with his friend Tim."])
    acts = stories_lm.run(tokens, attention_mask=mask, read=[IN, OUT], logits=None).acts
    x, y = acts[IN][0, 1:], acts[OUT][0, 1:]
    assert (sae(x) - y).square().sum() / (y - y.mean(0)).square().sum() < 0.3


def test_routes() -> None:
    assert SiteMap.parse("resid_post.3") == SiteMap((Site("resid_post", 3),), (Site("resid_post", 3),))
    assert SiteMap.parse("mlp_in.1 -> mlp_out.1") == SiteMap.parse(IN, OUT) == SiteMap.parse(ARROW, "mlp_out.1")
    assert str(SiteMap.parse(IN, OUT)) == ARROW and str(SiteMap.parse(IN, IN)) == "mlp_in.1"
    assert SiteMap.parse(ARROW).transcodes and not SiteMap.parse(IN).transcodes
    with pytest.raises(ConfigError, match=r"ends at mlp_out\.1, and site_out is mlp_out\.2"):
        SiteMap.parse(ARROW, "mlp_out.2")
    for text in ("mlp_in.1->", "->mlp_in.1", "mlp_in.1->mlp_uot.1"):
        with pytest.raises(UnknownSite):
            SiteMap.parse(text)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("resid_post.2--resid_post.2", "resid_post.2"),
        ("resid_post.2->resid_post.2", "resid_post.2"),
        ("mlp_in.1--mlp_out.1", ARROW),
        ("mlp_in.0..2--mlp_out.0..2", "mlp_in.0..2->mlp_out.0..2"),
        ("blocks.1.mlp.hook_in--blocks.1.hook_mlp_out", ARROW),
        ("resid_post.2@other--model", "resid_post.2@other--model"),
    ],
)
def test_the_arrow_may_be_written_as_in_the_names_of_folders(text: str, same: str) -> None:
    found = SiteMap.parse(text)
    assert found == SiteMap.parse(same) and str(found) == same


def test_routes_of_several_sites() -> None:
    residuals = tuple(Site("resid_post", layer) for layer in (1, 2, 4))
    route = SiteMap.parse("resid_post.1 + resid_post.2+resid_post.4")
    assert (route.reads, route.writes) == (residuals, residuals)
    assert route.crosses and not route.transcodes and route.sites == list(residuals)
    assert str(route) == route.start == "resid_post.1..2+resid_post.4"
    pair = SiteMap.parse("resid_post.3+resid_post.3@other")
    assert pair.reads[1] == Site("resid_post", 3, "other") and pair.reads[1].at_home == pair.reads[0]
    clt = SiteMap.parse("mlp_in.0..2->mlp_out.0..2")
    assert clt.crosses and clt.transcodes and len(clt.sites) == 6 and clt.end == "mlp_out.0..2"
    for each in (route, pair, clt, SiteMap.parse("embed+resid_post.0..1@a+resid_post.0..1@b")):
        assert SiteMap.parse(str(each)) == each
    for text, message in (
        ("resid_post.1+resid_post.1", "twice"),
        ("resid_post.2..1", "contains no layer"),
        ("mlp_in.0..1->mlp_out.1", "reads 2 sites and predicts 1"),
        ("mlp_out.0..1->mlp_in.0..1", "order of computation"),
        ("mlp_in.1+mlp_in.0->mlp_out.0..1", "order of computation"),
    ):
        with pytest.raises(ConfigError, match=message):
            SiteMap.parse(text)
    with pytest.raises(ConfigError, match="reads several sites"):
        _ = clt.site


@pytest.mark.parametrize(
    "text", ["mlp_in.0..99999999999->mlp_out.0..99999999999", "resid_post.0..1000", f"mlp_in.0..{'9' * 5000}"]
)
def test_endless_ranges_are_refused_before_they_are_listed(text: str) -> None:
    with pytest.raises(ConfigError, match="more than 1000 layers"):
        SiteMap.parse(text)
    assert len(SiteMap.parse("resid_post.0..999").reads) == 1000
