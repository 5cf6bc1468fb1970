"""Methods that choose what to tune: their choices against plain computations, and what they leave alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.lm import LanguageModel
from saekit.steer.optimise import TUNERS, MaskedWeights, Problem, TuneSettings, WeightMask, objective, train, tune
from saekit.steer.optimise.masks import matrices_of, parameters
from saekit.steer.optimise.methods.landermt import awareness
from saekit.steer.weights import WeightDelta
from saekit.tasks import Labelled, Ranking, Task

QUICK = TuneSettings(steps=6, lr=0.02, batch=8)
TEXTS = Labelled(("w1 w2 w3 w4", "w5 w6 w7", "w8 w9 w1 w30", "w40 w41"), labels=("a", "b", "a", "b"))


def gradients(lm: LanguageModel, loss: Tensor) -> dict[str, Tensor]:
    own = {name: dict(lm.model.named_parameters())[name] for name in matrices_of(lm).parts}
    return dict(zip(own, torch.autograd.grad(loss, list(own.values()))))


def with_gradients(lm: LanguageModel, on: bool) -> None:
    lm.model.requires_grad_(on)


def bits(lm: LanguageModel) -> list[Tensor]:
    return [weight.detach().clone() for weight in lm.model.parameters()]


def test_sift_takes_the_largest_gradients_of_each_matrix(lm: LanguageModel, task: Task) -> None:
    loss = objective(lm, task)
    found = tune(Problem(lm, loss, None, QUICK, fraction=0.05, progress=False), "sift", {"batches": 1})
    with_gradients(lm, True)
    grads = gradients(lm, loss([0, 1, 2]))
    with_gradients(lm, False)
    assert found.mask is not None
    assert set(found.mask.parts) == set(grads)
    for name, part in found.mask.parts.items():
        size = grads[name].abs()
        assert int(part.sum()) == max(1, int(0.05 * part.numel()))
        assert float(size[part].min()) >= float(size[~part].max())
    assert found.share == found.count / parameters(lm)


def test_the_core_is_the_product_of_weights_and_gradients(lm: LanguageModel, task: Task, neutral: list[list[int]]) -> None:
    problem = Problem(lm, objective(lm, task), neutral, QUICK, progress=False)
    found = tune(problem, "outside_core", {"core": 0.1, "batches": 1})
    with_gradients(lm, True)
    grads = gradients(lm, objective(lm, neutral)([0, 1]))
    with_gradients(lm, False)
    assert found.mask is not None
    own = dict(lm.model.named_parameters())
    for name, part in found.mask.parts.items():
        size = (grads[name] * own[name]).abs()
        assert int((~part).sum()) == int(0.1 * part.numel())
        assert float(size[~part].min()) >= float(size[part].max())
    with pytest.raises(ConfigError, match="none is given"):
        tune(Problem(lm, objective(lm, task), None, QUICK, progress=False), "outside_core")


def test_neft_takes_the_rows_that_turn_most(lm: LanguageModel, task: Task) -> None:
    loss = objective(lm, task)
    found = tune(Problem(lm, loss, None, QUICK, fraction=0.1, progress=False), "neft", {"first_steps": 4})
    every = MaskedWeights(lm, matrices_of(lm))
    before = {name: weight.detach().clone() for name, weight in lm.model.named_parameters()}
    with every.training():
        train(lm, every, loss, None, TuneSettings(steps=4, lr=0.02, batch=8), progress=False)
        cosines = {}
        for name, weight in lm.model.named_parameters():
            if name in matrices_of(lm).parts:
                for row in range(len(weight)):
                    a, b = before[name][row], weight.detach()[row]
                    cosines[name, row] = float(a @ b / a.norm() / b.norm())
    wanted = sorted(cosines, key=lambda each: cosines[each])[: int(0.1 * len(cosines))]
    assert found.mask is not None
    chosen = {(name, row) for name, part in found.mask.parts.items() for row in part.any(1).nonzero()[:, 0].tolist()}
    assert chosen == set(wanted)
    assert all(bool(part[part.any(1)].all()) for part in found.mask.parts.values())


def test_awareness_is_the_product_of_activation_and_gradient(lm: LanguageModel) -> None:
    loss = objective(lm, TEXTS)
    found = awareness(lm, loss, batches=1, batch=8, seed=0)
    assert set(found) == {"a", "b"}
    for group, texts in {"a": [0, 2], "b": [1, 3]}.items():
        rows = [lm.text.ids([TEXTS.texts[n]])[0] for n in texts]
        kept: list[tuple[Tensor, int]] = []

        def keep(module: object, args: tuple[Tensor, ...], kept: list[tuple[Tensor, int]] = kept) -> None:
            args[0].retain_grad()
            kept.append((args[0], args[0].shape[1]))

        handle = lm.blocks[1].mlp.down_proj.register_forward_pre_hook(keep)
        with_gradients(lm, True)
        losses = [
            -lm.model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)[range(len(row) - 1), row[1:]].sum() for row in rows
        ]
        (torch.stack(losses).sum() / sum(len(row) - 1 for row in rows)).backward()
        handle.remove()
        with_gradients(lm, False)
        lm.model.zero_grad(set_to_none=True)
        total = torch.stack([(h * h.grad).abs().sum((0, 1)) for h, _ in kept]).sum(0).detach()
        torch.testing.assert_close(found[group][1], total / sum(n for _, n in kept), atol=1e-10, rtol=1e-6)


def test_landermt_routes_groups_to_their_neurons(lm: LanguageModel) -> None:
    loss = objective(lm, TEXTS)
    start = bits(lm)
    found = tune(Problem(lm, loss, None, QUICK, fraction=0.1, progress=False), "landermt", {"batches": 1})
    scores = awareness(lm, loss, batches=1, batch=8, seed=0)
    best = {group: set(torch.cat([each[0], each[1]]).topk(int(0.1 * 48)).indices.tolist()) for group, each in scores.items()}
    wanted = WeightMask.of(lm, [f"neuron:{n // 24}/{n % 24}" for n in best["a"] | best["b"]])
    assert found.mask is not None
    assert (found.mask - wanted).count == (wanted - found.mask).count == 0
    assert found.change.facts["neurons"] == {
        **({"general": len(best["a"] & best["b"])} if best["a"] & best["b"] else {}),
        "a": len(best["a"] - best["b"]),
        "b": len(best["b"] - best["a"]),
    }
    assert all(torch.equal(one, other) for one, other in zip(start, bits(lm)))


@pytest.mark.parametrize("method", [name for name, row in TUNERS.items() if row.weights])
def test_every_method_lowers_the_loss_and_touches_its_mask_alone(
    lm: LanguageModel, task: Task, neutral: list[list[int]], method: str
) -> None:
    loss, every = objective(lm, task), [0, 1, 2]
    objects = ["head:0.1", "head:1.2"] if TUNERS[method].objects else None
    start = {name: weight.detach().clone() for name, weight in lm.model.named_parameters()}
    problem = Problem(lm, loss, neutral, TuneSettings(steps=10, lr=0.02), objects, progress=False)
    found = tune(problem, method)
    assert (found.mask is None) == (method == "lora")  # whose change is no choice of entries
    assert isinstance(found.change, WeightDelta)
    with torch.no_grad():
        before = float(loss(every))
        with found.on(lm) as edits:
            assert float(loss(every, edits)) < before - 0.05
            for name, weight in lm.model.named_parameters():
                none = torch.zeros_like(weight, dtype=torch.bool)
                part = ~none if name in found.change.factors else none if found.mask is None else found.mask.parts.get(name, none)
                assert torch.equal(weight[~part], start[name][~part])
    assert found.count == found.change.facts["tuned"] == (found.count if found.mask is None else found.mask.count)
    assert all(torch.equal(weight, start[name]) for name, weight in lm.model.named_parameters())


def test_objects_are_asked_for_where_a_method_needs_them(lm: LanguageModel, task: Task) -> None:
    loss = objective(lm, task)
    with pytest.raises(ConfigError, match="none are given"):
        tune(Problem(lm, loss, progress=False), "pinpoint")
    with pytest.raises(ConfigError, match="takes no objects"):
        tune(Problem(lm, loss, objects="head:0.1", progress=False), "sift")
    with pytest.raises(ConfigError, match="neuron:0/1 is no head"):
        tune(Problem(lm, loss, objects=Ranking(("head:0.1", "neuron:0/1"), (1.0, 0.5)), progress=False), "pinpoint")  # type: ignore[arg-type]
