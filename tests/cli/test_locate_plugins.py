"""A plugin adds a method, a space, a generated task, a metric, a probe and a format of graphs; commands use them by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from saekit.locate.graphs.export import GRAPH_FORMATS
from saekit.locate.probe.fit import KINDS
from saekit.locate.registry import METHODS
from saekit.objects.registry import SPACES
from saekit.sae import SAE
from saekit.tasks.generators import GENERATORS
from saekit.tasks.metric import METRICS
from tests.kit.commands import Saekit

PLUGIN = """
import numpy as np
import torch

from saekit.locate.graphs.export import GRAPH_FORMATS
from saekit.locate.probe.fit import KINDS
from saekit.locate.registry import METHODS, Method
from saekit.locate.scored import prepared, ranked
from saekit.objects.lookup import whole
from saekit.objects.registry import SPACES, SpaceRow, at_sites
from saekit.tasks.task import PromptTexts
from saekit.tasks.generators import GENERATORS, Draft, Generator
from saekit.tasks.metric import METRICS


def lengths(lm, data, *, spaces=None, metric=None, positions=None, power=1.0, progress=True):
    task, metric = prepared(lm, data, metric)
    found = lm.run(task.clean_BT, attention_mask=task.mask_BT, read=[space.site for space in spaces], logits=None)
    rows = torch.stack([found[space.site][:, -1].norm(dim=-1) ** power for space in spaces])
    refs = [space.ref(0) for space in spaces]
    return ranked(refs, rows, method="lengths", lm=lm, data=data, metric=metric, spaces=spaces, power=power)


def draw(random):
    clean, corrupted = random.sample(["Tom", "Lily", "Ben", "Sam"], 2)
    return Draft(PromptTexts(clean + " was", corrupted + " was", " happy", " sad"), {"subject": clean})


def nearest_mean(x_ND, label_N):
    means = [x_ND[label_N == k].mean(0) for k in (0, 1)]
    return means[1] - means[0], float(np.square(means[0]).sum() - np.square(means[1]).sum()) / 2


METHODS.register("lengths", Method(lengths, "task", "Length of the activation of the last token."))
SPACES.register("inputs", SpaceRow("inputs of the MLP", at_sites(["mlp_in"], whole)))
GENERATORS.register("moods", Generator(draw, "Who was happy."))
METRICS.register("largest", lambda metric, logits_BTV: metric.at_positions(logits_BTV).amax(-1))
KINDS.register("nearest_mean", nearest_mean)
GRAPH_FORMATS.register("count", lambda graph: str(len(graph.nodes)))
"""
ADDED = (
    (METHODS, "lengths"),
    (SPACES, "inputs"),
    (GENERATORS, "moods"),
    (METRICS, "largest"),
    (KINDS, "nearest_mean"),
    (GRAPH_FORMATS, "count"),
)


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The plugin, which a process imports once."""
    file = tmp_path_factory.mktemp("plugin") / "plugin_of_locating.py"
    file.write_text(PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAEKIT_PLUGINS", str(file))
        yield
        for registry, name in ADDED:
            registry.unregister(name)


def test_rows_of_a_plugin_are_used_by_name(saekit: Saekit, stories_path: Path) -> None:
    listed = {row["method"]: row["options"] for row in saekit("locate", "--list", "--json").json}
    assert listed["lengths"] == {"power": 1.0}
    asked = ("locate", stories_path, "--task", "gen:moods", "--prompts", 2, "--space", "inputs", "--json")
    outcome = saekit(*asked, "--method", "lengths", "--metric", "largest", "--option", "power=2")
    assert outcome.status == 0, outcome.stdout
    found = outcome.json
    assert {row["ref"] for row in found} == {f"site:mlp_in.{layer}" for layer in range(len(found))} and found[0]["n"] == 2
    once = {row["ref"]: row["score"] for row in saekit(*asked, "--method", "lengths").json}
    assert all(row["score"] > once[row["ref"]] for row in found)
    changed = saekit(*asked, "--method", "attribution_patching", "--metric", "largest").json
    assert {row["ref"] for row in changed} == once.keys()


def test_a_probe_of_a_plugin(saekit: Saekit, stories_path: Path, tmp_path: Path) -> None:
    contrast = tmp_path / "moods.csv"
    pairs = [f"{who} was {mood[0]}.,{who} was {mood[1]}." for who in ("Tom", "Lily", "Ben") for mood in (("happy", "sad"),) * 2]
    contrast.write_text("\n".join(["positive,negative", *pairs]))
    asked = ("locate", stories_path, "--task", contrast, "--method", "probe", "--layers", "3", "--json")
    assert saekit(*asked, "--option", "kind=nearest_mean", "--option", "pool=mean").json[0]["score"] > 0.9
    assert "nearest_mean" in saekit(*asked, "--option", "kind=nearest").stderr


def test_a_format_of_graphs_of_a_plugin(saekit: Saekit, stories_path: Path, make_sae: Callable[..., SAE], tmp_path: Path) -> None:
    make_sae("skip_transcoder", 64, 20, d_out=64, site="mlp_in.1", site_out="mlp_out.1").save(tmp_path / "sae")
    out = tmp_path / "graph.txt"
    few = ("--option", "verify=no", "--option", "max_feature_nodes=5", "--format", "count", "--out", out)
    found = saekit("circuit", stories_path, "Once upon", "--dictionary", tmp_path / "sae", *few, "--json").json
    assert int(out.read_text()) == len(found["nodes"])
