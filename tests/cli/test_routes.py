"""Commands on dictionaries that predict other sites than they read."""

from __future__ import annotations

from pathlib import Path

import pytest

from saekit.names.site import Site
from saekit.sae import SAE
from saekit.workspace import Workspace
from tests.kit.commands import Saekit

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
    sae = SAE.load(tmp_path / "ws" / "sae" / "mlp_in.2--mlp_out.2")
    assert (str(sae.cfg.site), str(sae.cfg.site_out)) == ("mlp_in.2", "mlp_out.2")
    assert "W_skip" in sae.state_dict()

    ws = tmp_path / "ws"
    assert saekit("eval", ws, "--json").json["ce_spliced"] == pytest.approx(quality["ce_spliced"], rel=1e-6)
    assert saekit("show", ws, "5", "--json").json["ref"] == "feature:mlp_in.2/5"
    more = saekit("train", ws, "--site", "mlp_in.2->mlp_out.2", *SMALL[2:], "--arch", "batchtopk", "--name", "other", "--json")
    assert more.status == 0, more.stderr
    beside = saekit("train", ws, "--site", "mlp_in.2", *SMALL[2:], "--json")
    assert beside.status == 0, beside.stderr
    own, transcoder = (saekit("eval", ws, "--site", place, "--json").json for place in ("mlp_in.2", "mlp_in.2->mlp_out.2"))
    assert transcoder["ce_spliced"] == pytest.approx(quality["ce_spliced"], rel=1e-6) and own["fvu"] != transcoder["fvu"]
    workspace = Workspace.open(ws)
    workspace.attach("mlp_in.2->mlp_out.2")
    assert workspace.attached == {Site("mlp_in", 2): ("mlp_in.2->mlp_out.2", "")}
    indexed = saekit("index", ws, "--json")  # both, side by side
    assert [row["site"] for row in indexed.json] == ["mlp_in.2", "mlp_in.2->mlp_out.2"], indexed.stderr
    refs = {feature: saekit("show", ws, feature, "--json").json["ref"] for feature in ("5", "mlp_in.2--mlp_out.2/5")}
    assert refs == {"5": "feature:mlp_in.2/5", "mlp_in.2--mlp_out.2/5": "feature:mlp_in.2->mlp_out.2/5"}
    for feature in refs:
        steered = saekit("steer", ws, "--feature", feature, "Once", "--json")
        assert [fired["feature"] for fired in steered.json["fired"]] == [refs[feature]], steered.stderr
    found = saekit("search", ws, "dog", "--json").json
    assert {hit["dictionary"] for hit in found} <= {"mlp_in.2", "mlp_in.2->mlp_out.2"}
    graph = saekit("circuit", ws, "The dog ran home", "--option", "max_feature_nodes=20", "--json")
    assert graph.status == 0, graph.stderr
    nodes = {node["ref"].partition("[")[0]: node["text"] for node in graph.json["nodes"] if node["kind"] == "feature"}
    labels = {ref: saekit("show", ws, ref.partition(":")[2], "--json").json["label"] for ref in list(nodes)[:3]}
    assert labels and all(ref.startswith("feature:mlp_in.2->mlp_out.2/") and nodes[ref] == labels[ref] for ref in labels)
    not_cached = saekit("train", ws, "--site", "mlp_in.2", "--site-out", "mlp_out.3", *SMALL[2:], "--name", "third")
    assert not_cached.status == 2 and "has no activations at mlp_out.3" in not_cached.stderr


def test_dictionaries_of_several_sites_are_trained_and_measured(
    saekit: Saekit, stories_path: Path, tinystories_path: Path, tmp_path: Path
) -> None:
    ws, places = tmp_path / "ws", ("resid_post.1+resid_post.2", "mlp_in.2..3->mlp_out.2..3")
    sites = [word for place in places for word in ("--site", place)]
    made = saekit("fit", stories_path, *sites, "--data", tinystories_path, *SMALL, "--arch", "batchtopk", "--out", ws, "--json")
    assert made.status == 0, made.stderr
    cross, clt = made.json["sites"].values()
    assert set(cross["fvu_by_site"]) == {"resid_post.1", "resid_post.2"} and max(cross["fvu_by_site"].values()) < 0.6
    assert "ce" not in cross and sum(cross["relative_norms"]["resid_post.1"]) <= 128
    assert clt["ce"] < clt["ce_spliced"] < clt["ce_zero"] and max(clt["fvu_by_site"].values()) < 0.9
    assert saekit("eval", ws, "--site", places[0], "--json").json["fvu"] == pytest.approx(cross["fvu"])
    shown = saekit("eval", ws, "--site", "resid_post.1..2")
    assert shown.status == 0 and "share of decoder norm" in shown.stdout
    assert "share of decoder norm" in shown.stdout and (ws / "reports" / "eval-resid_post.1..2.html").exists()
    assert saekit("eval", ws).status == 2  # of two, which?
    assert "jumprelu_clt" in str(saekit("verify", ws, "--json").json)
    graph = saekit("circuit", ws, "The dog ran home", "--option", "max_feature_nodes=20", "--json")
    assert graph.status == 0, graph.stderr
    refs = [node["ref"] for node in graph.json["nodes"] if node["kind"] == "feature"]
    assert refs and all(ref.startswith("feature:mlp_in.2..3->mlp_out.2..3/") for ref in refs)
    for command in (("index", ws, "--site", "resid_post.1..2"), ("search", ws, "dog"), ("steer", ws, "--feature", "7", "Once")):
        refused = saekit(*command)
        assert refused.status == 2, command
    assert "is a dictionary of several sites" in saekit("index", ws).stderr

    # The same tokens through another model: here the same one, so that all is shared.
    other = tmp_path / "other"
    assert (
        saekit("cache", stories_path, "--site", "resid_post.2", "--data", tinystories_path, *SMALL[:2], "--out", other).status
        == 0
    )
    pair = ("--site", "resid_post.2+resid_post.2@other", "--with", other)
    both = saekit("train", ws, *pair, *SMALL[2:], "--arch", "batchtopk", "--json")
    assert both.status == 0, both.stderr
    found = saekit("eval", ws, *pair, "--json").json
    first, second = found["fvu_by_site"].values()
    assert first == pytest.approx(second, rel=0.05)
    assert sum(found["relative_norms"]["resid_post.2@other"][3:7]) == sum(found["relative_norms"]["resid_post.2@other"])
    fewer = tmp_path / "fewer"
    assert (
        saekit(
            "cache", stories_path, "--site", "resid_post.2", "--data", tinystories_path, "--tokens", 20_000, "--out", fewer
        ).status
        == 0
    )
    refused = saekit("train", ws, "--site", "resid_post.2+resid_post.2@other", "--with", fewer, *SMALL[2:], "--name", "x")
    assert refused.status == 2 and "does not hold the tokens" in refused.stderr
