"""Gradients at sites against torch.autograd by plain hooks, finite differences, and models that are linear."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from saekit.lm import Edit, LanguageModel, Site
from saekit.locate.gradient import attribution_patching, gradient_norm, gradient_x_activation
from saekit.locate.gradient.backward import backward, read, set_site, values
from saekit.locate.gradient.problem import Batch, Problem
from saekit.locate.gradient.products import products
from saekit.objects import Ref, Space, spaces_of
from saekit.tasks import Metric, Ranking, Task
from tests.lm.conftest import attach
from tests.locate.gradient.conftest import FAMILIES

NAMES = ("heads", "neurons", "q", "k", "v", "blocks", "states", "residual", "patterns", "positions")


def spaces(lm: LanguageModel, names: tuple[str, ...] = NAMES) -> list[Space]:
    return [space for name in names for space in spaces_of(lm, name)]


def by_hooks(lm: LanguageModel, tokens: tuple[int, ...], metric: Metric, modules: list[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """What some modules take in when the bare model runs on one prompt, and the gradient of the metric there."""
    kept: list[Tensor] = []

    def before(module: nn.Module, args: Any) -> Any:
        x = args[0].detach().requires_grad_() if not args[0].requires_grad else args[0]
        x.retain_grad()
        kept.append(x)
        return (x, *args[1:])

    handles = [module.register_forward_pre_hook(before) for module in modules]
    logits = lm.model(input_ids=torch.tensor([tokens]), use_cache=False).logits
    for handle in handles:
        handle.remove()
    metric(logits).backward()
    return [(x.detach()[0], x.grad[0]) for x in kept if x.grad is not None]


def test_heads_and_neurons_equal_autograd_by_plain_hooks(lm: LanguageModel, task: Task) -> None:
    """A neuron is what the down projection takes in, also in gated MLPs; a head is what the output projection takes in."""
    found = gradient_x_activation(lm, task, spaces=spaces(lm, ("heads", "neurons")), progress=False)
    lengths = gradient_norm(lm, task, spaces=spaces(lm, ("heads", "neurons")), progress=False)
    metric = Metric.of("logit_difference", task)
    assert found.per_example is not None and lengths.per_example is not None
    places = {ref: n for n, ref in enumerate(found.refs)}
    for number, row in enumerate(task.clean):
        for layer in range(lm.n_layers):
            modules = [lm.projection(Site(kind, layer)) for kind in ("heads", "neurons")]
            z, neurons = by_hooks(lm, row, metric.of_prompts([number]), modules)
            expected = (z[0] * z[1]).unflatten(1, (lm.n_heads, -1)).sum((0, 2))
            for head in range(lm.n_heads):
                at = places[Ref.head(layer, head)]
                assert float(found.per_example[at, number]) == pytest.approx(float(expected[head]), rel=1e-6, abs=1e-9)
                length = z[1].unflatten(1, (lm.n_heads, -1))[:, head].norm()
                assert float(lengths.per_example[at, number]) == pytest.approx(float(length), rel=1e-6)
            at = places[Ref.neuron(layer, 7)]
            assert float(found.per_example[at, number]) == pytest.approx(
                float((neurons[0] * neurons[1])[:, 7].sum()), rel=1e-6, abs=1e-9
            )


def test_scores_are_slopes_along_the_patch(lm: LanguageModel, task: Task) -> None:
    """Finite differences, at every kind of object: also norms after blocks and shared key-value heads are seen through."""
    some = spaces(lm)
    problem = Problem.of(lm, task[1:2], some)
    (batch,) = problem.batches()
    for direction, base in (("noise", False), ("denoise", True)):
        found = attribution_patching(lm, task[1:2], spaces=some, direction=direction, progress=False)  # type: ignore[arg-type]
        clean, corrupted = read(lm, batch, problem.sites()), read(lm, batch, problem.sites(), corrupted=True)
        start = corrupted if base else clean
        for space in some:
            score = sum(score for ref, score in found.items() if ref.site == space.site and _of(ref, space))
            change = clean[space.site] - corrupted[space.site]

            def measured(
                amount: float, site: Site = space.site, h: Tensor = start[space.site], by: Tensor = change, base: bool = base
            ) -> float:
                return float(values(lm, batch, [set_site(site, h + amount * by, batch)], corrupted=base))

            # Norms and eager attention compute in float32 here too, so that steps must be long, and of fourth order.
            step = 0.02
            near, far = (measured(by * step) - measured(-by * step) for by in (1, 2))
            assert score == pytest.approx((8 * near - far) / (12 * step), rel=1e-3, abs=3e-5), space.site


def _of(ref: Ref, space: Space) -> bool:
    return ref.kind == space.ref_at(0, None).kind or ref.kind == "position"


def test_no_score_depends_on_the_batch_or_its_pads(lm: LanguageModel, task: Task) -> None:
    some = spaces(lm, ("heads", "k", "v", "blocks", "patterns"))
    together = attribution_patching(lm, task, spaces=some, progress=False)
    assert together.per_example is not None
    for number in range(len(task)):
        alone = attribution_patching(lm, task[number : number + 1], spaces=some, progress=False)
        assert alone.per_example is not None and alone.refs == together.refs
        assert torch.allclose(alone.per_example[:, 0], together.per_example[:, number], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_pads_on_the_left(family: str, task: Task) -> None:
    lm = attach(family)  # in float64, transformers' eager attention masks with numbers that its float32 softmax does not have
    some = spaces(lm, ("heads", "neurons", "k"))
    problem = Problem.of(lm, task, some, where="each")
    (right,) = problem.batches()
    T = right.tokens_BT.shape[1]
    shift = [T - len(row) for row in task.clean]

    def moved(x: Tensor) -> Tensor:
        return torch.stack([row.roll(by) for row, by in zip(x, shift)])

    metric = Metric("logit_difference", (T - 1,) * 3, *(tuple(row[0] for row in rows) for rows in (task.answers, task.foils)))
    left = Batch(moved(right.tokens_BT), moved(right.corrupted_BT), moved(right.real_BT), metric, right.columns)
    runs = [backward(lm, batch, problem.sites()) for batch in (right, left)]
    for space in some:
        parts = [
            products(space, run.acts, None, run.grads, problem.groups(space, batch)) for run, batch in zip(runs, (right, left))
        ]
        assert torch.equal(parts[0].keys_N, parts[1].keys_N)
        assert torch.allclose(parts[0].scores_NB, parts[1].scores_NB, rtol=1e-3, atol=1e-5)


def test_positions(llama: LanguageModel, task: Task) -> None:
    some = spaces(llama, ("heads",))

    def scored(positions: Any) -> Ranking:
        return gradient_x_activation(llama, task, spaces=some, positions=positions, progress=False)

    each, whole = scored("each"), scored(None)
    for ref in whole:
        assert whole[ref] == pytest.approx(sum(each[ref.at(place)] for place in range(8)), abs=1e-6)
    assert each.per_example is not None
    of = dict(zip(each.refs, each.per_example))
    last, middle, listed = scored("last"), scored("middle"), scored([3, 0])
    for ref in whole:
        assert last[ref.at("last")] == pytest.approx(float(of[ref.at(5)][0] + of[ref.at(7)][1] + of[ref.at(4)][2]) / 3, abs=1e-6)
        spans = zip(range(3), ((1, 4), (2, 4), (1, 3)))
        expected = sum(float(of[ref.at(place)][b]) for b, (start, end) in spans for place in range(start, end)) / 3
        assert middle[ref.at("middle")] == pytest.approx(expected, abs=1e-6)
        assert {listed[ref.at(place)] == pytest.approx(each[ref.at(place)]) for place in (0, 3)} == {True}
    assert len(listed) == 2 * len(whole)


def linear_model() -> LanguageModel:
    """A GPT-2 whose output is a linear function of its embeddings: no norms, no activation, attention to all tokens alike."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, activation_function="linear")
    model = GPT2LMHeadModel(config).double()
    for block in model.transformer.h:
        block.ln_1 = block.ln_2 = nn.Identity()
        block.attn.c_attn.weight.data[:, :64] = 0
        block.attn.c_attn.bias.data[:64] = 0
    model.transformer.ln_f = nn.Identity()
    model.requires_grad_(False)
    return LanguageModel.attach(model, None, name="linear")


def test_it_is_exact_for_a_linear_model(task: Task) -> None:
    lm = linear_model()
    some = spaces(lm, ("heads", "neurons", "v"))
    problem = Problem.of(lm, task, some)
    (batch,) = problem.batches()
    clean, corrupted = read(lm, batch, problem.sites()), read(lm, batch, problem.sites(), corrupted=True)
    intact = values(lm, batch), values(lm, batch, corrupted=True)
    found = [attribution_patching(lm, task, spaces=some, direction=each, progress=False) for each in ("noise", "denoise", "both")]
    for space in some:
        for unit in range(0, space.n_units, 5):
            effects = []
            for sign, base, source in ((1, clean, corrupted), (-1, corrupted, clean)):
                h = base[space.site]
                patched = space.write(h, [unit], space.read(source[space.site], [unit]))
                run = values(lm, batch, [set_site(space.site, patched, batch)], corrupted=sign < 0)
                effects.append(float(sign * (intact[sign < 0] - run).mean()))
            ref = space.ref(unit)
            assert [each[ref] for each in found] == pytest.approx([*effects, sum(effects) / 2], rel=1e-6, abs=1e-9)
            assert effects[0] != 0


def test_identical_prompts_score_zero_although_the_model_has_dropout(task: Task) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    settings = {"resid_pdrop": 0.5, "attn_pdrop": 0.5, "embd_pdrop": 0.5}
    lm = LanguageModel.attach(GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, **settings)), None)
    lm.model.train()
    same = Task("same", task.clean, task.clean, task.answers, task.foils)
    for direction in ("noise", "denoise"):
        found = attribution_patching(lm, same, spaces=spaces(lm), direction=direction, progress=False)  # type: ignore[arg-type]
        assert set(found.scores) == {0.0}


def test_an_edit_that_changes_nothing_gives_the_same_gradients(llama: LanguageModel, task: Task) -> None:
    problem = Problem.of(llama, task, spaces(llama, ("heads",)))
    (batch,) = problem.batches()
    one = backward(llama, batch, problem.sites())
    two = backward(llama, batch, problem.sites(), [Edit(llama.site("resid_mid.0"), lambda x, at: x.clone())])
    assert all(torch.allclose(one.grads[site], two.grads[site], rtol=1e-9, atol=1e-12) for site in problem.sites())
