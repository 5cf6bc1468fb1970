"""Features of SAEs: against the SAE spliced into the model, raw objects, and sums that must hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.lm import Edit, LanguageModel
from saekit.locate.gradient import (
    atp_star,
    attribution_patching,
    conductance,
    gradient_norm,
    gradient_x_activation,
    integrated_gradients,
)
from saekit.locate.gradient.problem import Problem
from saekit.objects import Ref, spaces_of
from saekit.sae import SAE, SAEConfig
from saekit.tasks import Metric, Task


@contextmanager
def attached(lm: LanguageModel, saes: dict[str, SAE]) -> Iterator[None]:
    for site, sae in saes.items():
        lm.attach_sae(site, sae.double())
    try:
        yield
    finally:
        lm.detach_sae()


def spliced(lm: LanguageModel, site: str, sae: SAE, row: tuple[int, ...], metric: Metric) -> tuple[Tensor, Tensor, float]:
    """Features (T, F), their gradient, and the metric, with y = x + dec(f) - dec(f).detach() in the model."""
    kept: list[Tensor] = []
    out = sae.writes_at(lm.site(site))

    def read(x: Tensor, at: Any) -> Tensor:
        kept.append(sae.encode_dense(x.detach()).requires_grad_())
        return x

    def write(y: Tensor, at: Any) -> Tensor:
        decoded = kept[0] @ sae.W_dec
        return y + decoded - decoded.detach()

    edits = [Edit(lm.site(site), read), Edit(out, write, order=1)]
    run = lm.run([list(row)], edits=edits, grad=True, logits="all")
    assert run.logits is not None
    value = metric(run.logits)
    value.backward()
    assert kept[0].grad is not None
    return kept[0].detach(), kept[0].grad, float(value.detach())


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "skip_transcoder"])
def test_it_equals_the_spliced_sae(llama: LanguageModel, task: Task, make_sae: Callable[..., SAE], architecture: str) -> None:
    lm = llama
    site = "mlp_in.0" if architecture == "skip_transcoder" else "resid_post.0"
    extra = {"d_out": 32, "site_out": "mlp_out.0"} if architecture == "skip_transcoder" else {}
    sae = make_sae(architecture, 32, 80, **extra)
    metric = Metric.of("logit_difference", task)
    with attached(lm, {site: sae}):
        features = spaces_of(lm, "features")
        found = gradient_x_activation(lm, task, spaces=features, progress=False)
        lengths = gradient_norm(lm, task, spaces=features, progress=False)
        heads = gradient_x_activation(lm, task, spaces=spaces_of(lm, "heads"), progress=False)
        ref = found.refs[0]
    # What comes before the SAE has the gradients of the bare model.
    assert gradient_x_activation(lm, task, spaces=spaces_of(lm, "heads"), progress=False).scores == heads.scores
    assert found.per_example is not None and lengths.per_example is not None
    for number, row in enumerate(task.clean):
        one = metric.of_prompts([number])
        f, grad, value = spliced(lm, site, sae, row, one)
        bare = lm.run([list(row)], logits="all").logits
        assert bare is not None and value == pytest.approx(float(one(bare)), rel=1e-12)
        expected = (f * grad).sum(0)
        scores = torch.zeros(80, dtype=torch.float64)
        scores[[ref.unit for ref in found.refs]] = found.per_example[:, number].double()
        assert torch.allclose(scores, expected, rtol=1e-9, atol=1e-12)
        norms = torch.zeros(80, dtype=torch.float64)
        norms[[ref.unit for ref in lengths.refs]] = lengths.per_example[:, number].double()
        assert torch.allclose(norms, torch.where(f != 0, grad, 0.0).norm(dim=0), rtol=1e-9, atol=1e-12)
    assert str(ref).startswith("feature:")


def test_a_normalising_sae(llama: LanguageModel, task: Task, make_sae: Callable[..., SAE]) -> None:
    """Its decoder is scaled at each token; the reference moves one coefficient by hand."""
    lm, sae = llama, make_sae("topk", 32, 80, normalize_activations="layer_norm")
    with attached(lm, {"resid_post.0": sae}):
        (space,) = spaces_of(lm, "features")
        found = gradient_x_activation(lm, task[:1], spaces=[space], positions="each", progress=False)
        problem = Problem.of(lm, task[:1], [space])
        (batch,) = problem.batches()
        ref = found.top(1).refs[0]
        place, unit = int(ref.position or 0), ref.unit
        h = lm.run(batch.tokens_BT, read=[space.site])[space.site]
        value = space.read(h, [unit])[0, place, 0]

        def measured(amount: float) -> float:
            new = h.clone()
            new[0, place] = space.write(h, [unit], value * amount)[0, place]
            run = lm.run(batch.tokens_BT, edits=[Edit(space.site, lambda x, at: new[0])], logits="all")
            assert run.logits is not None
            return float(problem.metric(run.logits))

        slope = (measured(1.01) - measured(0.99)) / 0.02
        assert found[ref] == pytest.approx(slope, rel=1e-3)


def identity(width: int) -> SAE:
    """A dictionary whose features are the coordinates: the `width` largest of `width`, with their signs."""
    config = SAEConfig("abstopk", d_in=width, n_latents=width, k=width)
    eye = torch.eye(width)
    return SAE(config, {"W_enc": eye, "W_dec": eye, "b_enc": torch.zeros(width), "b_dec": torch.zeros(width)})


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (gradient_norm, {}),
        (gradient_x_activation, {}),
        (attribution_patching, {"direction": "both"}),
        (atp_star, {}),
        (integrated_gradients, {"steps": 3}),
        (integrated_gradients, {"steps": 3, "along": "activations"}),
        (integrated_gradients, {"steps": 3, "along": "activations", "baseline": "zero"}),
        (conductance, {"steps": 3}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "-".join(map(str, value.values())),
)
def test_an_identity_sae_equals_the_raw_objects(llama: LanguageModel, task: Task, method: Any, options: dict[str, Any]) -> None:
    lm = llama
    raw = method(lm, task, spaces=spaces_of(lm, "neurons", [1]), positions="each", progress=False, **options)
    with attached(lm, {"neurons.1": identity(48)}):
        found = method(lm, task, spaces=spaces_of(lm, "features"), positions="each", progress=False, **options)
        errors = method(lm, task, spaces=spaces_of(lm, "error"), progress=False, **options)
    assert len(found) == len(raw)
    expected = [raw[Ref.neuron(1, ref.unit).at(ref.position)] for ref in found.refs]
    assert found.scores == pytest.approx(expected, rel=1e-9, abs=1e-12)
    if method is not gradient_norm:
        assert errors.scores == pytest.approx([0], abs=1e-12)


def test_features_and_error_add_up_to_the_whole_site(lm: LanguageModel, task: Task, make_sae: Callable[..., SAE]) -> None:
    """The error is an object: what the dictionary does not explain is not lost."""
    whole = spaces_of(lm, "states", [0])
    options: list[tuple[Any, dict[str, Any]]] = [
        (attribution_patching, {"direction": "noise"}),
        (attribution_patching, {"direction": "denoise"}),
        (integrated_gradients, {"steps": 4}),
        (conductance, {"steps": 4}),
    ]
    with attached(lm, {"resid_post.0": make_sae("standard", 32, 80)}):
        for method, more in options:
            parts = method(lm, task, progress=False, **more)  # the default spaces: features and error
            site = method(lm, task, spaces=whole, progress=False, **more)
            assert {ref.kind for ref in parts} == {"feature", "error"}
            assert sum(parts.scores) == pytest.approx(site.scores[0], rel=1e-8, abs=1e-10)
            assert abs(parts["error:resid_post.0"]) > 1e-6


def test_only_active_features_are_computed(llama: LanguageModel, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many latents: neither a dense code nor the gradient of every latent exists at any time."""
    width = 1 << 14
    config = SAEConfig("topk", d_in=32, n_latents=width, k=4)
    generator = torch.Generator().manual_seed(0)
    tensors = {"W_enc": torch.randn(32, width, generator=generator), "b_enc": torch.zeros(width), "b_dec": torch.zeros(32)}
    sae = SAE(config, {**tensors, "W_dec": tensors["W_enc"].T.contiguous()})
    largest = [0]
    found = torch.Tensor.unique

    def unique(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        largest[0] = max(largest[0], self.numel())
        return found(self, *args, **kwargs)

    def dense(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a dense tensor of all latents is made")

    monkeypatch.setattr(torch.Tensor, "unique", unique)
    monkeypatch.setattr(SAE, "encode_dense", dense)
    monkeypatch.setattr(SAE, "feature_vectors", dense)
    llama.attach_sae("resid_post.0", sae)
    try:
        for method in (attribution_patching, gradient_norm):
            ranking = method(llama, task, spaces=spaces_of(llama, "features"), progress=False)  # type: ignore[operator]
            assert 0 < len(ranking) <= 2 * 4 * 19
        assert 0 < largest[0] <= 2 * 4 * 19
    finally:
        llama.detach_sae()
