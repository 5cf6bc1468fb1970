"""Exhaustive ablation against one whole run with the intervention for every object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from saekit.errors import ConfigError, InterventionError, UnknownRef
from saekit.locate.causal import exhaustive_ablation, heads
from saekit.objects import Ref
from saekit.steer import ablate
from saekit.tasks import Metric

if TYPE_CHECKING:
    from collections.abc import Callable

    from saekit.lm import LanguageModel
    from saekit.sae import SAE

TEXTS = ["Once upon a time there was a little girl named Lily.", "The dog ran home."]


@pytest.fixture(scope="module")
def tokens(stories_lm: LanguageModel) -> tuple[torch.Tensor, torch.Tensor]:
    return stories_lm.encode(TEXTS, pad_side="left")


def last_log_probability(logits_BTV: torch.Tensor) -> torch.Tensor:
    return logits_BTV[:, -1].float().log_softmax(-1)[:, 5].mean()


@pytest.mark.parametrize("metric", [last_log_probability, Metric("log_probability", answers=(5, 5))])
@pytest.mark.parametrize("to", ["zero", "mean"])
@pytest.mark.parametrize("positions", [None, "last"])
def test_it_is_a_whole_run_for_each_object(
    stories_lm: LanguageModel, make_sae: Callable[..., SAE], tokens: Any, to: Any, positions: Any, metric: Any
) -> None:
    lm, (tokens_BT, mask_BT) = stories_lm, tokens
    site = lm.site("resid_post.1")
    lm.attach_sae(site, make_sae("topk", lm.d_model, 32))
    try:
        refs = [
            *heads(lm)[::5],
            Ref.neuron(2, 7),
            Ref.residual("embed", 3),
            *(Ref.feature(site, unit) for unit in range(0, 32, 8)),
        ]
        found = exhaustive_ablation(
            lm, refs, tokens_BT, metric, attention_mask=mask_BT, to=to, positions=positions, progress=False
        )
        assert list(found) == refs

        def measured(edits: Any) -> float:
            run = lm.run(tokens_BT, attention_mask=mask_BT, edits=edits, positions=positions, logits="all")
            assert run.logits is not None
            return float(last_log_probability(run.logits))

        intact = measured([])
        for ref, effect in found.items():
            whole = intact - measured([ablate(ref, to).resolve(lm, texts=TEXTS)])
            assert effect == pytest.approx(whole, rel=1e-3, abs=1e-5), ref
        assert max(map(abs, found.values())) > 1e-3
    finally:
        lm.detach_sae(site)


def test_prompts_with_numbers_of_their_own_have_an_interval(stories_lm: LanguageModel, tokens: Any) -> None:
    lm, (tokens_BT, mask_BT) = stories_lm, tokens
    metric = Metric("log_probability", answers=(5, 9))
    refs = heads(lm)[:6:2]
    found = exhaustive_ablation(lm, refs, tokens_BT, metric, attention_mask=mask_BT, progress=False)
    for ref, interval in zip(refs, found.intervals, strict=True):
        runs = [lm.run(tokens_BT, attention_mask=mask_BT, edits=edits).logits for edits in ((), [ablate(ref)])]
        drops = metric.per_prompt(runs[0]) - metric.per_prompt(runs[1])  # type: ignore[arg-type]
        assert found[ref] == pytest.approx(float(drops.mean()), abs=1e-5)
        # Of two prompts, a quarter of the resamples hold the lower one twice, and a quarter the higher one.
        assert interval == pytest.approx((float(drops.min()), float(drops.max())), abs=1e-5)
    facts = {"method": "exhaustive_ablation", "metric": "log_probability", "to": "zero", "prompts": 2, "positions": None}
    assert facts.items() <= found.obtained.items()
    assert found.top(1).refs[0] == max(refs, key=lambda ref: abs(found[ref]))
    callable_metric = exhaustive_ablation(lm, refs, tokens_BT, metric.per_prompt, attention_mask=mask_BT, progress=False)
    assert callable_metric.scores == pytest.approx(found.scores, abs=1e-5)
    assert callable_metric.per_example is not None
    assert found.per_example is not None
    torch.testing.assert_close(callable_metric.per_example, found.per_example, atol=1e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match="returned the shape"):
        exhaustive_ablation(lm, refs, tokens_BT, lambda logits: logits[0, 0, :5], progress=False)


def test_heads_lists_every_head(stories_lm: LanguageModel) -> None:
    expected = {Ref.head(layer, head) for layer in range(stories_lm.n_layers) for head in range(stories_lm.n_heads)}
    found = heads(stories_lm)
    assert set(found) == expected
    assert found == sorted(found)


def test_objects_that_cannot_be_ablated_are_refused_before_any_run(stories_lm: LanguageModel, tokens: Any) -> None:
    def never(logits: torch.Tensor) -> float:
        raise AssertionError("no metric is wanted")

    with pytest.raises(UnknownRef):
        exhaustive_ablation(stories_lm, ["head:0.0", "head:99.0"], tokens[0], never, progress=False)
    with pytest.raises(InterventionError):
        exhaustive_ablation(stories_lm, ["head:0.0"], tokens[0], never, to="median", progress=False)  # type: ignore[arg-type]
