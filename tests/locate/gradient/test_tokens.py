"""Input-token attribution: completeness, gradients by hand, and spans of generated tokens."""

from __future__ import annotations

import pytest
import torch

from saekit.errors import ConfigError
from saekit.lm import Edit, LanguageModel
from saekit.locate.gradient import token_attribution
from saekit.tasks import Metric, Task


def log_probability(
    lm: LanguageModel, row: list[int], start: int, end: int, embedded: torch.Tensor | None = None
) -> torch.Tensor:
    edits = [] if embedded is None else [Edit(lm.site("embed"), lambda x, at: embedded)]
    run = lm.run([row], edits=edits, grad=embedded is not None and embedded.requires_grad, logits="all")
    assert run.logits is not None
    logs = run.logits[0].log_softmax(-1)
    return torch.stack([logs[place - 1, row[place]] for place in range(start, end)]).sum()


def test_a_span_is_attributed_to_the_tokens_before_it(lm: LanguageModel) -> None:
    """The scores add up to the change of the span's log-probability when the embeddings before it go to the mean one."""
    row = list(range(20, 32))
    found = token_attribution(lm, row, target=(8, 11), steps=100, progress=False)
    assert [str(ref) for ref in found.refs] == [f"position:{place}" for place in range(8)]
    embedded = lm.run([row], read=["embed"])["embed"][0]
    without = embedded.clone()
    without[:8] = lm.embedding(torch.arange(97)).mean(0)
    expected = float(log_probability(lm, row, 8, 11) - log_probability(lm, row, 8, 11, without))
    assert sum(found.scores) == pytest.approx(expected, rel=5e-3, abs=5e-3)
    assert found.obtained["completeness_gap"] == pytest.approx(abs(sum(found.scores) - expected), abs=1e-4)


def test_gradient_times_input_by_hand(lm: LanguageModel) -> None:
    row = list(range(20, 32))
    found = token_attribution(lm, row, target=(8, 11), rule="gradient_x_input", progress=False)
    embedded = lm.run([row], read=["embed"])["embed"][0].detach().requires_grad_()
    (grad,) = torch.autograd.grad(log_probability(lm, row, 8, 11, embedded), embedded)
    assert found.scores == pytest.approx((grad * embedded).sum(1)[:8].tolist(), rel=1e-5, abs=1e-8)


def test_spans_of_a_task(llama: LanguageModel, task: Task) -> None:
    found = token_attribution(llama, task, target="middle", steps=5, progress=False)
    assert found.per_example is not None
    for number, (start, end) in enumerate(((1, 4), (2, 4), (1, 3))):
        alone = token_attribution(llama, task.clean[number], target=(start, end), steps=5, progress=False)
        own = [float(found.per_example[place, number]) for place in range(start)]
        assert own == pytest.approx(list(alone.scores), rel=1e-4, abs=1e-7)
        assert not found.per_example[start:, number].any()


def test_a_task_without_target_is_judged_by_its_metric(llama: LanguageModel, task: Task) -> None:
    found = token_attribution(llama, task, baseline="corrupted", steps=60, progress=False)
    metric = Metric.of("logit_difference", task)
    runs = [llama.run(rows, attention_mask=task.mask_BT).logits for rows in (task.clean_BT, task.corrupted_BT)]
    assert found.per_example is not None
    change = metric.per_prompt(runs[0]) - metric.per_prompt(runs[1])  # type: ignore[arg-type]
    assert torch.allclose(found.per_example.sum(0).double(), change, rtol=5e-3, atol=5e-3)
    same = [
        place
        for place in range(8)
        if all(a[place : place + 1] == b[place : place + 1] for a, b in zip(task.clean, task.corrupted))
    ]
    assert same and all(found[f"position:{place}"] == 0 for place in same)  # type: ignore[index]


def test_a_text(stories_lm: LanguageModel) -> None:
    text = "Lily had a red ball. Tom had a blue ball. Lily's ball was red"
    found = token_attribution(stories_lm, text, steps=30, progress=False)
    rows = stories_lm.text.ids([text])[0]
    assert len(found) == len(rows) - 1 and "".join(found.obtained["tokens"]).endswith("red")
    assert found.obtained["target"] == [len(rows) - 1, len(rows)]


def test_texts_that_cannot_be_attributed(llama: LanguageModel) -> None:
    for data, why in (([5], "no earlier tokens"), (3.5, "cannot be attributed")):
        with pytest.raises(ConfigError, match=why):
            token_attribution(llama, data, progress=False)  # type: ignore[arg-type]
