"""Integrated gradients and conductance: completeness, the rule of integration, and a reference by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.lm import Edit, LanguageModel
from saekit.locate.gradient import conductance, integrated_gradients
from saekit.locate.gradient.integrated import input_path, mean_gradients, midpoints
from saekit.locate.gradient.problem import Problem
from saekit.objects import Ref, spaces_of
from saekit.tasks import Metric, Task


def change(lm: LanguageModel, task: Task) -> Tensor:
    """(B,) metric(clean) - metric(corrupted)."""
    metric = Metric.of("logit_difference", task)
    runs = [lm.run(rows, attention_mask=task.mask_BT).logits for rows in (task.clean_BT, task.corrupted_BT)]
    return metric.per_prompt(runs[0]) - metric.per_prompt(runs[1])  # type: ignore[arg-type]


def test_scores_of_the_inputs_add_up_to_the_change_of_the_metric(lm: LanguageModel, task: Task) -> None:
    found = integrated_gradients(lm, task, spaces=spaces_of(lm, "positions"), steps=60, progress=False)
    assert found.per_example is not None and {ref.kind for ref in found} == {"position"}
    expected = change(lm, task)
    gap = (found.per_example.sum(0) - expected).abs()
    assert float(gap.max()) < 2e-3 * float(expected.abs().max())
    assert found.obtained["completeness_gap"] == pytest.approx(float(gap.mean()), abs=1e-5)
    assert found.obtained["change_along_path"] == pytest.approx(float(expected.abs().mean()), rel=1e-4)


def test_conductances_of_the_residual_stream_add_up_in_every_layer(lm: LanguageModel, task: Task) -> None:
    found = conductance(lm, task, spaces=spaces_of(lm, "states"), steps=60, progress=False)
    assert found.per_example is not None and len(found) == lm.n_layers
    for row in found.per_example:
        assert torch.allclose(row.double(), change(lm, task), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_along_activations_a_space_adds_up_to_setting_all_of_it(lm: LanguageModel, task: Task, direction: Any) -> None:
    clean, corrupted = (
        lm.run(rows, attention_mask=task.mask_BT, read=["heads.0"])["heads.0"] for rows in (task.clean_BT, task.corrupted_BT)
    )
    base, source = (task.clean_BT, corrupted) if direction == "noise" else (task.corrupted_BT, clean)
    metric = Metric.of("logit_difference", task)
    edit = Edit(lm.site("heads.0"), lambda rows, at: source[task.mask_BT.bool()])
    runs = [lm.run(base, attention_mask=task.mask_BT, edits=edits).logits for edits in ([], [edit])]
    moved = metric.per_prompt(runs[1]) - metric.per_prompt(runs[0])  # type: ignore[arg-type]
    found = integrated_gradients(
        lm, task, spaces=spaces_of(lm, "heads", [0]), steps=40, along="activations", direction=direction, progress=False
    )
    assert found.per_example is not None
    expected = -moved if direction == "noise" else moved
    assert torch.allclose(found.per_example.sum(0).double(), expected, rtol=5e-3, atol=5e-4)
    assert found.obtained["completeness_gap"] < 5e-3 * found.obtained["change_along_path"] + 5e-4


def test_ten_midpoints_beat_fifty_points_on_the_left(llama: LanguageModel, task: Task) -> None:
    problem = Problem.of(llama, task, spaces_of(llama, "positions"))
    (batch,) = problem.batches()
    path = input_path(llama, batch, "corrupted")
    gaps = []
    for points in (midpoints(10), [step / 50 for step in range(50)]):
        grads = mean_gradients(llama, batch, [path], points, {path.site})
        gaps.append(float(path.gap(batch, grads[path.site], change(llama, task)).abs().mean()))
    assert gaps[0] < gaps[1]


def test_it_is_the_formula(llama: LanguageModel, task: Task) -> None:
    """By a loop over steps and prompts, for heads: the change of z times the mean gradient on the path of the embeddings."""
    lm, steps = llama, 4
    heads = spaces_of(lm, "heads", [1])
    found = integrated_gradients(lm, task, spaces=heads, steps=steps, progress=False)
    flowing = conductance(lm, task, spaces=heads, steps=steps, progress=False)
    assert found.per_example is not None and flowing.per_example is not None
    metric = Metric.of("logit_difference", task)
    for number, (clean, corrupted) in enumerate(zip(task.clean, task.corrupted)):
        start, end = (lm.embedding(torch.tensor([row])).detach() for row in (corrupted, clean))

        def at(alpha: float, row: tuple[int, ...] = clean, start: Tensor = start, end: Tensor = end, number: int = number) -> Any:
            edit = Edit(lm.site("embed"), lambda x, at: (start + alpha * (end - start))[0])
            run = lm.run([list(row)], read=["heads.1"], edits=[edit], grad=True, logits="all")
            assert run.logits is not None
            grad = torch.autograd.grad(metric.of_prompts([number])(run.logits), run["heads.1"])[0]
            return run["heads.1"].detach()[0], grad[0]

        edges = [at(step / steps)[0] for step in range(steps + 1)]
        grads = [at((step + 0.5) / steps)[1] for step in range(steps)]
        by_hand = ((edges[-1] - edges[0]) * torch.stack(grads).mean(0)).sum((0, 2))
        through = sum(((after - before) * grad).sum((0, 2)) for before, after, grad in zip(edges, edges[1:], grads))
        for head in range(lm.n_heads):
            place = found.refs.index(Ref.head(1, head))
            assert float(found.per_example[place, number]) == pytest.approx(float(by_hand[head]), rel=1e-5, abs=1e-8)
            assert float(flowing.per_example[place, number]) == pytest.approx(float(through[head]), rel=1e-5, abs=1e-8)  # type: ignore[index]


def test_steps_may_be_run_in_parts(llama: LanguageModel, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    some = spaces_of(llama, "heads")
    whole = [method(llama, task, spaces=some, steps=5, progress=False).scores for method in (integrated_gradients, conductance)]
    monkeypatch.setattr("saekit.locate.gradient.integrated.TOKENS", 50)
    monkeypatch.setattr("saekit.locate.gradient.problem.TOKENS", 16)
    parts = [method(llama, task, spaces=some, steps=5, progress=False).scores for method in (integrated_gradients, conductance)]
    for one, two in zip(whole, parts):
        assert one == pytest.approx(two, rel=1e-5, abs=1e-8)
