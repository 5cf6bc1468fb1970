"""Causal tracing against plain torch hooks."""

from __future__ import annotations

import pytest
import torch

from saekit.errors import ConfigError
from saekit.lm import LanguageModel
from saekit.locate.causal import Noise, causal_tracing, trace
from saekit.locate.causal.tracing import windows
from saekit.objects import spaces_of
from saekit.tasks import Task
from tests.kit import by_hand
from tests.lm.conftest import attach

TASK = by_hand.random_task()
EMBEDDINGS = {
    "llama": "model.embed_tokens",
    "gpt_neox": "gpt_neox.embed_in",
    "gpt2": "transformer.wte",
    "gemma2": "model.embed_tokens",
}


def probability(task: Task, row: int, logits_TV: torch.Tensor) -> float:
    return float(logits_TV[len(task.clean[row]) - 1].double().softmax(-1)[task.answers[row][0]])


@pytest.mark.parametrize("family", sorted(EMBEDDINGS))
@pytest.mark.parametrize(("restore", "window"), [("states", 1), ("mlp", 2), ("attention", 10)])
def test_restoring_is_restoring_by_hand(family: str, restore: str, window: int) -> None:
    lm = attach(family)
    noise = Noise(samples=3, seed=5)
    found = trace(lm, TASK, restore=restore, window=window, by="position", noise=noise, progress=False)
    kind = {"states": "resid_post", "mlp": "mlp_out", "attention": "attn_out"}[restore]
    embed = [by_hand.read(lm.model, row, EMBEDDINGS[family], "out") for row in TASK.clean]
    sigma = 3 * float(torch.cat([each[1:3].flatten() for each in embed]).double().std())
    assert found.ranking.obtained["sigma"] == pytest.approx(sigma, rel=1e-5)
    assert found.ranking.per_example is not None
    clean, noised = [], []
    for row, tokens in enumerate(TASK.clean):
        clean.append(probability(TASK, row, by_hand.logits(lm.model, tokens)))
        drawn = [each[:, 0] for each in noise.drawn([each[1:3, None] for each in embed], sigma, row)]
        hooks = [[(EMBEDDINGS[family], "out", by_hand.put((1, 2), slice(None), each))] for each in drawn]
        without = [probability(TASK, row, by_hand.logits(lm.model, tokens, each)) for each in hooks]
        noised += without
        for layer in range(2):
            near = range(layer - window // 2, layer + (window + 1) // 2)
            for t in (0, 2, len(tokens) - 1):
                restored = [
                    (name, side, by_hand.put((t,), slice(None), by_hand.read(lm.model, tokens, name, side)[[t]]))
                    for name, side in (by_hand.path(family, kind, other) for other in near if other in range(2))
                ]
                values = [probability(TASK, row, by_hand.logits(lm.model, tokens, [*each, *restored])) for each in hooks]
                score = float(
                    found.ranking.per_example[
                        found.ranking.refs.index(spaces_of(lm, "states")[0].ref(0).parse(f"site:{kind}.{layer}[{t}]")), row
                    ]
                )
                assert score == pytest.approx(sum(values) / 3 - sum(without) / 3, abs=1e-6)
                if t == 0:
                    assert score == 0
    assert found.clean == pytest.approx(sum(clean) / 3, rel=1e-4)
    assert found.noised == pytest.approx(sum(noised) / 9, rel=1e-4)


def test_restoring_everything_undoes_the_noise() -> None:
    lm = attach("llama")
    found = causal_tracing(lm, TASK, spaces=spaces_of(lm, "states", [0]), positions=None, progress=False)
    gap = found.obtained["clean"] - found.obtained["noised"]
    assert found.scores == pytest.approx([gap], rel=1e-4)
    assert abs(gap) > 1e-5


def test_the_seed_decides_the_noise() -> None:
    lm = attach("gpt2")
    heads = spaces_of(lm, "heads")
    first, again, other = (
        causal_tracing(lm, TASK, spaces=heads, noise=Noise(samples=2, seed=seed), progress=False) for seed in (0, 0, 1)
    )
    assert first.scores == again.scores
    assert first.scores != other.scores
    assert first.obtained["sigma"] == other.obtained["sigma"]


def test_columns_are_positions_or_roles() -> None:
    lm = attach("llama")
    by_role = trace(lm, TASK, noise=Noise(samples=1), progress=False)
    assert by_role.columns == ("before", "first subject", "last subject", "first after", "after", "last")
    assert by_role.ranking.per_example is not None
    scores = dict(zip(map(str, by_role.ranking.refs), by_role.ranking.per_example))
    after = [[4, 5], [], [4, 5]]  # the second prompt has five tokens, and its fifth is the last
    means = [sum(float(scores[f"site:resid_post.1[{t}]"][row]) for t in each) / 2 for row, each in enumerate(after) if each]
    assert float(by_role.effects_LC[1, 4]) == pytest.approx(sum(means) / 2, abs=1e-9)
    last = [float(scores[f"site:resid_post.1[{len(row) - 1}]"][i]) for i, row in enumerate(TASK.clean)]
    assert float(by_role.effects_LC[1, 5]) == pytest.approx(sum(last) / 3, abs=1e-9)
    aligned = trace(lm, TASK[:1], noise=Noise(samples=1), progress=False)
    assert aligned.columns == tuple(map(str, range(7)))
    facts = aligned.to_dict()
    assert facts["restored"] == "states"
    assert torch.tensor(facts["effects"]).shape == (2, 7)
    assert aligned.plot().data[0].type == "heatmap"


def test_the_window_is_that_of_the_paper() -> None:
    lm = attach("llama")
    blocks = spaces_of(lm, "blocks")
    layers = [[(each.site.kind, each.site.layer) for each in group] for group in windows(blocks, 2)]
    assert layers == [[("attn_out", 0)], [("mlp_out", 0)], [("attn_out", 0), ("attn_out", 1)], [("mlp_out", 0), ("mlp_out", 1)]]
    with pytest.raises(ConfigError, match="window of 3 layers"):
        causal_tracing(lm, TASK, spaces=spaces_of(lm, "heads"), window=3, progress=False)


def test_the_subject_is_a_span_or_what_differs() -> None:
    bare = Task("bare", TASK.clean, TASK.corrupted, TASK.answers, TASK.foils)
    assert Noise().columns(TASK) == [(1, 2)] * 3
    assert Noise().columns(bare) == [(1, 3)] * 3
    assert Noise(span="last").columns(bare) == [(6,), (4,), (6,)]
    same = Task("same", TASK.clean, TASK.clean, TASK.answers, TASK.foils)
    with pytest.raises(ConfigError, match="prompt 0 of task 'same' are the same"):
        Noise().columns(same)
    with pytest.raises(ConfigError, match="hides nothing"):
        Noise(scale=0)
    lm: LanguageModel = attach("llama")
    with pytest.raises(ConfigError, match="has no 'layers'"):
        trace(lm, TASK, restore="layers", progress=False)
