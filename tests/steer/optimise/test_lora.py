"""LoRA through peft: the model is restored, and the delta equals the trained layers."""

from __future__ import annotations

import torch

from saekit.lm import LanguageModel
from saekit.steer.optimise import Problem, TuneSettings, objective, tune
from saekit.steer.optimise.methods.lora import LowRank
from tests.kit.tiny import make_documents, make_lm


def _modules(lm: LanguageModel) -> list[int]:
    return [id(module) for module in lm.model.modules()]


def test_the_delta_is_what_the_layers_of_peft_add() -> None:
    lm = make_lm()
    tokens = torch.tensor([[0, 5, 9, 7]])
    before, modules = lm.run(tokens).logits, _modules(lm)
    weights = {name: weight.clone() for name, weight in lm.model.named_parameters()}
    wanted = [weight.requires_grad for weight in lm.model.parameters()]
    adjustment = LowRank(lm, 2, 3.0, seed=0)
    with adjustment.training():
        assert torch.equal(lm.model(tokens).logits, before)  # B begins as 0
        with torch.no_grad():
            for n, number in enumerate(adjustment.leaves()):
                number.copy_(torch.randn(number.shape, generator=torch.Generator().manual_seed(n)))
            after = lm.model(tokens).logits
            with adjustment.off():
                assert torch.equal(lm.model(tokens).logits, before)
    assert _modules(lm) == modules and not hasattr(lm.model, "peft_config")
    assert [weight.requires_grad for weight in lm.model.parameters()] == wanted
    assert all(torch.equal(weight, weights[name]) for name, weight in lm.model.named_parameters())
    with lm.edited(adjustment.delta("lora")):
        assert torch.allclose(lm.run(tokens).logits, after, atol=1e-4) and not torch.allclose(after, before, atol=1e-2)
    assert torch.equal(lm.run(tokens).logits, before)


def test_lora_learns_texts_and_keeps_others() -> None:
    lm = make_lm()
    texts = make_documents(6, longest=8)
    loss = objective(lm, texts)
    problem = Problem(lm, loss, make_documents(4, seed=1, longest=8), TuneSettings(steps=30, batch=6, lr=3e-2), progress=False)
    start = float(loss(range(6)).detach())
    found = tune(problem, "lora", {"rank": 4})
    with found.on(lm):
        assert float(loss(range(6)).detach()) < start - 0.02
    assert float(loss(range(6)).detach()) == start
    assert found.count == sum(len(left) * 4 + 4 * right.shape[1] for left, right in found.change.factors.values())  # type: ignore[union-attr]
