"""The sites of experts: the router's logits, the weights of its choices, and the neurons of all experts."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.errors import UnknownSite
from saekit.lm import Edit, LanguageModel, Run
from scripts.tiny_families import tiny_model

# Plain, with biases and transposed weights, with shared experts after a dense layer, and beside linear attention.
FAMILIES = ["mixtral", "gpt_oss", "deepseek_v3", "qwen3_next"]
LAYER = 1


@cache
def attached(name: str) -> LanguageModel:
    model = tiny_model(name).double()
    model.set_experts_implementation("eager")  # the one that computes in float64
    return LanguageModel.attach(model, None, name=name)


@pytest.fixture(params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return attached(request.param)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(1))


def bank(lm: LanguageModel) -> Any:
    experts = lm.layouts[LAYER].experts
    assert experts is not None
    return experts.bank


def one_expert(lm: LanguageModel, x_ND: Tensor, e: int) -> Tensor:
    """The neurons (N, F) of one expert, written out for each way of storing experts."""
    module = bank(lm)
    up = module.gate_up_proj[e] if module.is_transposed else module.gate_up_proj[e].T
    h = x_ND @ up
    if not module.has_bias:
        gate, up = h.chunk(2, -1)
        return torch.nn.functional.silu(gate) * up
    h = h + module.gate_up_proj_bias[e]  # gpt-oss: interleaved and clamped
    gate, up = h[:, ::2].clamp(max=module.limit), h[:, 1::2].clamp(-module.limit, module.limit)
    return (up + 1) * gate * torch.sigmoid(module.alpha * gate)


def down(lm: LanguageModel) -> Tensor:
    """(E, F, d_model)."""
    module = bank(lm)
    return module.down_proj if module.is_transposed else module.down_proj.transpose(1, 2)


def routed(lm: LanguageModel, run: Run) -> Tensor:
    """The routed output (N, d_model) for the read weights and mlp_in, expert by expert."""
    weights = run[f"routing.{LAYER}"].flatten(0, 1)
    x = run[f"mlp_in.{LAYER}"].flatten(0, 1)
    out = torch.zeros_like(x)
    for e in range(weights.shape[1]):
        y = one_expert(lm, x, e) @ down(lm)[e]
        y = y + bank(lm).down_proj_bias[e] if bank(lm).has_bias else y
        out = out + weights[:, e, None] * y
    return out


READ = [f"{kind}.{LAYER}" for kind in ("mlp_in", "router", "routing", "experts", "mlp_out")]


@torch.no_grad()
def test_sites_against_every_expert_computed_by_itself(lm: LanguageModel, tokens: Tensor) -> None:
    run = lm.run(tokens, read=READ)
    E, F = lm.token_shape(f"experts.{LAYER}")
    assert run[f"router.{LAYER}"].shape == run[f"routing.{LAYER}"].shape == (2, 7, E)
    assert run[f"experts.{LAYER}"].shape == (2, 7, E, F)
    weights = run[f"routing.{LAYER}"]
    assert ((weights != 0).sum(-1) == lm.config.num_experts_per_tok).all()
    x = run[f"mlp_in.{LAYER}"].flatten(0, 1)
    neurons = torch.stack([one_expert(lm, x, e) for e in range(E)], 1) * weights.flatten(0, 1)[..., None]
    torch.testing.assert_close(run[f"experts.{LAYER}"].flatten(0, 1), neurons)
    # The largest logits belong to the chosen experts: none of these routers has groups or biases that decide otherwise.
    top = run[f"router.{LAYER}"].topk(lm.config.num_experts_per_tok, -1).indices
    assert (weights.gather(-1, top) != 0).all()


@torch.no_grad()
def test_weights_may_choose_any_number_of_experts(lm: LanguageModel, tokens: Tensor) -> None:
    base = lm.run(tokens, read=READ)
    E = lm.token_shape(f"routing.{LAYER}")[0]
    for count in (0, 1, E):
        new = torch.zeros(E, dtype=torch.float64)
        new[:count] = torch.arange(1, count + 1) / 7
        run = lm.run(tokens, read=READ, edits=[Edit(lm.site(f"routing.{LAYER}"), lambda rows, at, new=new: new.expand_as(rows))])
        assert torch.equal(run[f"routing.{LAYER}"], new.expand(2, 7, E))
        changed = (run[f"mlp_out.{LAYER}"] - base[f"mlp_out.{LAYER}"]).flatten(0, 1)
        torch.testing.assert_close(changed, routed(lm, run) - routed(lm, base))


@torch.no_grad()
def test_neurons_of_experts_that_were_not_chosen_can_be_written(lm: LanguageModel, tokens: Tensor) -> None:
    base = lm.run(tokens, read=READ)
    weights = base[f"routing.{LAYER}"][0, 3]
    idle = int((weights == 0).nonzero()[0])

    def write(rows: Tensor, at: Any) -> Tensor:
        new = rows.clone()
        new[:, idle, 2] = 1.5
        return new

    run = lm.run(tokens, read=READ, edits=[Edit(lm.site(f"experts.{LAYER}"), write, positions=[3])])
    changed = run[f"mlp_out.{LAYER}"][0, 3] - base[f"mlp_out.{LAYER}"][0, 3]
    torch.testing.assert_close(changed, 1.5 * down(lm)[idle, 2])
    assert torch.equal(run[f"mlp_out.{LAYER}"][0, :3], base[f"mlp_out.{LAYER}"][0, :3])


@torch.no_grad()
def test_logits_decide_the_weights(lm: LanguageModel, tokens: Tensor) -> None:
    other = lm.run(tokens.flip(0), read=READ)
    values = other[f"router.{LAYER}"]
    edit = Edit(lm.site(f"router.{LAYER}"), lambda rows, at: values[at.batch_N, at.position_N])
    run = lm.run(tokens, read=READ, edits=[edit])
    torch.testing.assert_close(run[f"routing.{LAYER}"], other[f"routing.{LAYER}"])
    torch.testing.assert_close(
        run[f"mlp_out.{LAYER}"] - lm.run(tokens, read=READ)[f"mlp_out.{LAYER}"],
        (routed(lm, run) - routed(lm, lm.run(tokens, read=READ))).view_as(run[f"mlp_out.{LAYER}"]),
    )


@pytest.mark.parametrize("kind", ["router", "routing", "experts"])
def test_gradients_are_those_of_finite_differences(lm: LanguageModel, tokens: Tensor, kind: str) -> None:
    site = lm.site(f"{kind}.{LAYER}")
    run = lm.run(tokens, read=[site], grad=True, logits="all")
    assert run.logits is not None
    direction = torch.randn(run.logits.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (run.logits * direction).sum().backward()
    grad, step = run[site].grad, 1e-2  # norms and softmax of these models compute in float32
    assert grad is not None
    values = run[site].detach()
    for n in grad.abs().flatten().topk(4).indices:
        index = tuple(int(i) for i in torch.unravel_index(n, grad.shape))
        metrics = []
        for sign in (1, -1):
            moved = values.clone()
            moved[index] += sign * step
            edit = Edit(site, lambda rows, at, moved=moved: moved[at.batch_N, at.position_N])
            logits = lm.run(tokens, edits=[edit]).logits
            assert logits is not None
            metrics.append(float((logits * direction).sum()))
        assert (metrics[0] - metrics[1]) / (2 * step) == pytest.approx(float(grad[index]), rel=2e-2)


def test_an_edit_of_experts_acts_in_every_step_of_decoding() -> None:
    lm = attached("mixtral")
    row = [5, 17, 30, 8]

    def only_first(rows: Tensor, at: Any) -> Tensor:
        return rows * torch.tensor([3.0, 0, 0, 0], dtype=rows.dtype)[:, None]

    edits = [Edit(lm.site(f"experts.{layer}"), only_first) for layer in range(2)]
    (found,) = lm.generate([row], interventions=edits, max_new_tokens=5, do_sample=False, eos_token_id=-1).tokens
    again: list[int] = []
    for _ in range(5):
        run = lm.run([row + again], edits=edits, positions="last+generated", prompt_lengths=[4], logits="all")
        assert run.logits is not None
        again.append(int(run.logits[0, -1].argmax()))
    assert found == again
    assert found != lm.generate([row], max_new_tokens=5, do_sample=False, eos_token_id=-1).tokens[0]


def test_absent_sites_have_reasons() -> None:
    lm = attached("deepseek_v3")
    assert lm.reason("experts.0") == "layer 0 has no experts"
    assert lm.reason("neurons.0") is None and "experts" in str(lm.reason("neurons.1"))
    with pytest.raises(UnknownSite, match=r"no router\.0: layer 0 has no experts"):
        lm.site("router.0")


def test_the_space_of_experts_counts_all_neurons() -> None:
    lm = attached("mixtral")
    E, F = lm.token_shape("experts.0")
    space = lm.space("experts.0")
    assert space.n_units == E * F and str(space.ref(F + 2)).endswith(f"experts.0/{F + 2}")
