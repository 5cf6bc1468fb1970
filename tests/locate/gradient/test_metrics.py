"""Metrics that have no gradient, or not one for each prompt: typed errors instead of zeros or None."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.errors import ConfigError, NonFiniteActivations, SaekitError
from saekit.lm import LanguageModel
from saekit.locate.gradient import (
    atp_star,
    attribution_patching,
    conductance,
    gradient_norm,
    gradient_x_activation,
    integrated_gradients,
    parameter_saliency,
    token_attribution,
)
from saekit.tasks import Contrast, Metric, Task

METHODS = (
    gradient_norm,
    gradient_x_activation,
    attribution_patching,
    atp_star,
    integrated_gradients,
    conductance,
    parameter_saliency,
    token_attribution,
)
WITHOUT: dict[str, Any] = {
    "argmax": lambda logits: logits[:, -1].argmax(-1).double(),
    "detach": lambda logits: logits[:, -1, 5].detach(),
    "numpy": lambda logits: torch.tensor(logits[:, -1, 5].numpy()),
    "item": lambda logits: logits[0, -1, 5].item(),
    "no_grad": torch.no_grad()(lambda logits: 2 * logits[:, -1, 5]),
}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
@pytest.mark.parametrize("name", WITHOUT)
def test_a_metric_without_gradient_is_refused(llama: LanguageModel, task: Task, method: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=r"no gradient with respect to the logits.*or use a method without gradients"):
        method(llama, task, metric=WITHOUT[name], progress=False)


def test_a_metric_that_does_not_depend_on_the_model_is_refused(llama: LanguageModel, task: Task) -> None:
    """torch.autograd gives None there, which must not pass as no score or as zero."""
    constant = torch.ones(3, dtype=torch.float64, requires_grad=True)
    view_without_graph = torch.no_grad()(lambda logits: logits[:, -1, 5])
    for metric in (lambda logits: constant * 2, view_without_graph):
        with pytest.raises(ConfigError, match=r"No gradient of the metric reaches .*does not depend on it"):
            attribution_patching(llama, task, metric=metric, progress=False)


def test_one_number_for_all_prompts_is_refused(llama: LanguageModel, task: Task) -> None:
    def mean(logits: Tensor) -> Tensor:
        return logits[:, -1, 5].mean()

    with pytest.raises(ConfigError, match=r"one number for 3 prompts.*Return a tensor \(B,\)"):
        gradient_x_activation(llama, task, metric=mean, progress=False)
    assert len(gradient_x_activation(llama, task[:1], metric=mean, progress=False))
    with pytest.raises(ConfigError, match="shape"):
        gradient_x_activation(llama, task, metric=lambda logits: logits[0, 0], progress=False)


def test_a_metric_that_is_not_finite_is_refused(llama: LanguageModel, task: Task) -> None:
    with pytest.raises(NonFiniteActivations, match="not finite for 3 of 3"):
        gradient_x_activation(llama, task, metric=lambda logits: logits[:, -1, 5] / 0, progress=False)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_mode_of_the_caller_does_not_matter(llama: LanguageModel, task: Task, mode: Any) -> None:
    for method in (gradient_x_activation, atp_star, integrated_gradients, parameter_saliency):
        expected = method(llama, task, progress=False)
        with mode():
            assert method(llama, task, progress=False).scores == expected.scores


def test_weights_and_their_gradients_are_left_alone(llama: LanguageModel, task: Task) -> None:
    weights = list(llama.model.parameters())
    before = [weight.clone() for weight in weights]
    for weight in weights:
        weight.requires_grad_()
    try:
        for method in METHODS:
            method(llama, task, progress=False)
        assert all(weight.grad is None and torch.equal(weight, kept) for weight, kept in zip(weights, before))
    finally:
        for weight in weights:
            weight.requires_grad_(False)


def test_a_callable_equals_the_metric_that_it_computes(llama: LanguageModel, task: Task) -> None:
    """Logits of the last tokens alone give what all logits give."""
    metric = Metric.of("log_probability", task)
    for method in METHODS:
        one, two = (method(llama, task, metric=each, progress=False) for each in (metric, metric.per_prompt))
        assert one.scores == pytest.approx(two.scores, rel=1e-5, abs=1e-9)
        assert one.obtained["metric"] == "log_probability"


@pytest.mark.parametrize("kind", ["probability", "kl", "cross_entropy"])
def test_metrics_by_name(llama: LanguageModel, task: Task, kind: str) -> None:
    found = attribution_patching(llama, task, metric=kind, direction="denoise", progress=False)
    assert max(map(abs, found.scores)) > 1e-6


def test_answers_of_several_tokens(llama: LanguageModel, task: Task) -> None:
    longer = Task("longer", task.clean, task.corrupted, ((5, 8), (6, 4), (7, 9)), task.foils)
    found = gradient_x_activation(llama, longer, metric="log_probability", progress=False)
    rows = torch.tensor([longer.clean[2] + (7,)])
    one = Task("one", (longer.clean[2] + (7,),), (longer.clean[2] + (7,),), ((9,),), ((3,),))

    def both(logits: Tensor) -> Tensor:
        logs = logits.log_softmax(-1)
        return logs[:, -2, 7] + logs[:, -1, 9]

    by_hand = gradient_x_activation(llama, one, metric=both, progress=False)
    assert found.per_example is not None
    assert found.per_example[:, 2].tolist() == pytest.approx(list(by_hand.scores), rel=1e-5, abs=1e-8)
    assert rows.shape == (1, 6)


@pytest.mark.parametrize(
    ("method", "options", "why"),
    [
        (attribution_patching, {"direction": "up"}, "no direction 'up'"),
        (attribution_patching, {"positions": "subject"}, "no positions 'subject'"),
        (attribution_patching, {"positions": [70]}, "no position 70"),
        (attribution_patching, {"spaces": []}, "No space"),
        (integrated_gradients, {"steps": 0}, "0 steps"),
        (integrated_gradients, {"along": "weights"}, "no path along"),
        (integrated_gradients, {"baseline": "noise"}, "no baseline"),
        (integrated_gradients, {"baseline": "zero", "direction": "denoise"}, "not 0"),
        (conductance, {"steps": 1.5}, "1.5 steps"),
        (parameter_saliency, {"level": "layer"}, "no level"),
        (parameter_saliency, {"kind": "square"}, "no kind"),
        (parameter_saliency, {"positions": "each"}, "no positions"),
        (token_attribution, {"target": (0, 2)}, "no span after its first token"),
        (token_attribution, {"rule": "guess"}, "no rule"),
    ],
)
def test_options_that_do_not_fit(llama: LanguageModel, task: Task, method: Any, options: dict[str, Any], why: str) -> None:
    with pytest.raises(SaekitError, match=why):
        method(llama, task, **options, progress=False)


def test_other_data_than_tasks(llama: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="need a task"):
        gradient_norm(llama, Contrast("x", ("a",), ("b",)), progress=False)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="need a task"):
        gradient_norm(llama, Task("none", (), (), (), ()), progress=False)
