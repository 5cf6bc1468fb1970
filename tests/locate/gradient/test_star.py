"""AtP*: the QK fix against recomputed softmaxes, GradDrop against runs with detached layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.errors import UnsupportedModel
from saekit.lm import Edit, LanguageModel, Site
from saekit.locate.gradient import atp_star, attribution_patching
from saekit.objects import Ref, Space, spaces_of
from saekit.tasks import Metric, Task
from tests.lm.conftest import attach


def spaces(lm: LanguageModel, names: str) -> list[Space]:
    return [space for name in names.split() for space in spaces_of(lm, name)]


def recomputed(lm: LanguageModel, task: Task, number: int, kind: str, layer: int, denoise: bool) -> dict[tuple[int, int], float]:
    """For every head and position: the pattern with that one query or key patched, times the gradient at the pattern.

    The model itself computes the pattern from the patched vector: position embedding, norms, soft cap and window are its own.
    """
    site, pattern = Site(kind, layer), Site("pattern", layer)
    rows = (task.corrupted, task.clean) if denoise else (task.clean, task.corrupted)
    base, other = ([list(each[number])] for each in rows)
    metric = Metric.of("logit_difference", task).of_prompts([number])
    run = lm.run(base, read=[pattern], grad=True, logits="all")
    assert run.logits is not None
    (G,) = torch.autograd.grad(metric(run.logits), [run[pattern]])
    before = run[pattern].detach()
    own, source = (lm.run(tokens, read=[site])[site] for tokens in (base, other))
    found = {}
    for position in range(own.shape[1]):
        for head in range(own.shape[2]):
            patched = own.clone()
            patched[0, position, head] = source[0, position, head]
            edit = Edit(site, lambda rows, at, patched=patched: patched[0])  # type: ignore[misc]
            after = lm.run(base, read=[pattern], edits=[edit])[pattern]
            effect = float(((after - before) * G).sum())
            found[head, position] = effect if denoise else -effect
    return found


# Besides the families of float64: multi-query attention of gpt_bigcode has no table; phi rotates part of each vector.
@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_the_qk_fix_equals_recomputing_every_softmax(lm: LanguageModel, task: Task, direction: Any) -> None:
    found = atp_star(
        lm, task, spaces=spaces(lm, "q k"), positions="each", direction=direction, grad_drop=False, upstream=False, progress=False
    )
    assert found.per_example is not None
    of = dict(zip(found.refs, found.per_example))
    plain = attribution_patching(lm, task, spaces=spaces(lm, "q k"), direction=direction, positions="each", progress=False)
    differs = 0.0
    for kind in ("q", "k"):
        for layer in range(lm.n_layers):
            for (head, position), expected in recomputed(lm, task, 1, kind, layer, direction == "denoise").items():
                ref = Ref.head(layer, head, kind).at(position)
                assert float(of[ref][1]) == pytest.approx(expected, rel=1e-4, abs=1e-5), ref
                differs = max(differs, abs(expected - float(plain.per_example[plain.refs.index(ref), 1])))  # type: ignore[index]
    assert differs > 1e-3  # the softmax is not linear here


def test_pads_do_not_matter(task: Task) -> None:
    for family in ("llama", "gemma2", "gpt2"):
        lm = attach(family)
        some = spaces(lm, "q k heads")
        together = atp_star(lm, task, spaces=some, positions="each", progress=False)
        alone = atp_star(lm, task[2:], spaces=some, positions="each", progress=False)
        assert together.per_example is not None
        of = dict(zip(together.refs, together.per_example))
        assert [float(of[ref][2]) for ref in alone] == pytest.approx(list(alone.scores), rel=1e-3, abs=1e-5)


def test_other_objects_have_the_plain_scores_without_repairs(lm: LanguageModel, task: Task) -> None:
    some = spaces(lm, "heads neurons v blocks")
    for direction in ("noise", "denoise"):
        found = atp_star(lm, task, spaces=some, direction=direction, upstream=False, grad_drop=False, progress=False)  # type: ignore[arg-type]
        plain = attribution_patching(lm, task, spaces=some, direction=direction, progress=False)  # type: ignore[arg-type]
        assert found.scores == pytest.approx(plain.scores, rel=1e-4, abs=1e-6)


def test_grad_drop_is_the_mean_over_layers_left_out(lm: LanguageModel, task: Task) -> None:
    """Against a whole run for each layer, in which what the layer writes is detached."""
    some = spaces(lm, "heads")
    found = atp_star(lm, task, spaces=some, qk_fix=False, progress=False)
    plain = attribution_patching(lm, task, spaces=some, progress=False)
    metric = Metric.of("logit_difference", task)
    sites = [space.site for space in some]
    change: dict[Site, Tensor] = {}
    runs = [lm.run(rows, attention_mask=task.mask_BT, read=sites) for rows in (task.clean_BT, task.corrupted_BT)]
    for site in sites:
        change[site] = runs[0][site] - runs[1][site]
    sums = {site: torch.zeros(3, lm.n_heads, dtype=torch.float64) for site in sites}
    for layer in range(lm.n_layers):
        edits = [Edit(Site(kind, layer), lambda rows, at: rows.detach()) for kind in ("attn_out", "mlp_out")]
        run = lm.run(task.clean_BT, attention_mask=task.mask_BT, read=sites, edits=edits, grad=True, logits="all")
        assert run.logits is not None
        grads = torch.autograd.grad(metric.per_prompt(run.logits).sum(), [run[site] for site in sites], allow_unused=True)
        for site, grad in zip(sites, grads):
            if grad is not None:
                real = task.mask_BT[..., None, None]
                sums[site] += (grad * change[site] * real).sum((1, 3)).abs()
    assert found.per_example is not None and plain.per_example is not None
    for place, ref in enumerate(found.refs):
        assert ref.site is not None
        dropped = sums[ref.site][:, ref.unit] / (lm.n_layers - 1)
        expected = torch.maximum(dropped, plain.per_example[place].abs()) * plain.per_example[place].sign()
        assert torch.allclose(found.per_example[place].double(), expected.double(), rtol=1e-4, atol=1e-7)


def test_a_model_that_computes_its_attention_itself(task: Task) -> None:
    lm = attach("gptj")
    with pytest.raises(UnsupportedModel, match="qk_fix=False"):
        atp_star(lm, task, spaces=spaces(lm, "q"), progress=False)
    assert len(atp_star(lm, task, spaces=spaces(lm, "heads"), qk_fix=False, progress=False)) == lm.n_layers * lm.n_heads
