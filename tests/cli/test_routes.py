"""Commands on dictionaries that predict other sites than they read."""

from __future__ import annotations

from pathlib import Path

import pytest

from saekit.sae import SAE
from tests.cli.conftest import Saekit

SMALL = ("--tokens", 30_000, "--train-tokens", 60_000, "--latents", 128, "--l0", 8, "--batch-size", 512, "--lr", 3e-3)


def test_a_transcoder_from_the_cache_to_the_splice(
    saekit: Saekit, stories_path: Path, tinystories_path: Path, tmp_path: Path
) -> None:
    ends = ("--site", "mlp_in.2", "--site-out", "mlp_out.2", "--skip", "true")
    made = saekit("fit", stories_path, *ends, "--data", tinystories_path, *SMALL, "--out", tmp_path / "ws", "--json")
    assert made.status == 0, made.stderr
    quality = made.json["sites"]["mlp_in.2->mlp_out.2"]
    assert quality["fvu"] < 0.7
    assert quality["ce"] < quality["ce_spliced"] < quality["ce_zero"]
    sae = SAE.load(tmp_path / "ws" / "sae" / "mlp_in.2")
    assert (str(sae.cfg.site), str(sae.cfg.site_out)) == ("mlp_in.2", "mlp_out.2")
    assert "W_skip" in sae.state_dict()

    ws = tmp_path / "ws"
    assert saekit("eval", ws, "--json").json["ce_spliced"] == pytest.approx(quality["ce_spliced"], rel=1e-6)
    assert saekit("show", ws, "5", "--json").json["ref"] == "feature:mlp_in.2/5"
    more = saekit("train", ws, "--site", "mlp_in.2->mlp_out.2", *SMALL[2:], "--arch", "batchtopk", "--name", "other", "--json")
    assert more.status == 0, more.stderr
    not_cached = saekit("train", ws, "--site", "mlp_in.2", "--site-out", "mlp_out.3", *SMALL[2:], "--name", "third")
    assert not_cached.status == 2 and "has no activations at mlp_out.3" in not_cached.stderr
