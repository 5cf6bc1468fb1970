"""Scores of edges against the formulas of EAP and EAP-IG in float64, on a model written out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from saekit.errors import ConfigError, UnsupportedModel
from saekit.locate.circuits import Scoring, Wiring, score_edges
from saekit.locate.circuits.taps import Taps
from saekit.locate.registry import METHODS
from saekit.tasks import Metric, Task
from tests.kit.dense_llama import DenseLlama
from tests.kit.tiny import tiny_llama

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

STEPS = 4


def difference(task: Task, logits_BTV: Tensor) -> Tensor:
    rows = torch.arange(len(task))
    last = logits_BTV[rows, task.last_B]
    return last[rows, task.answer_B] - last[rows, task.foil_B]


def gradients(dense: DenseLlama, task: Task, embedded: Tensor, other: Tensor) -> Tensor:
    """(U, V, B): minus the change of each prompt's metric per share removed of an edge, at no share removed."""
    removed = torch.zeros(dense.U, dense.V, dtype=torch.float64, requires_grad=True)
    values = difference(task, dense.run(embedded, removed, other).logits)
    return -torch.stack([torch.autograd.grad(value, removed, retain_graph=True)[0] for value in values], -1)


def by_hand(dense: DenseLlama, task: Task, method: str) -> Tensor:
    """(U, V, B) the scores of the formulas: the gradient where the inputs stand, times what the writers of `clean` lose."""
    start, end = dense.embed(task.corrupted_BT), dense.embed(task.clean_BT)
    clean, corrupted = dense.run(end).written, dense.run(start).written
    if method == "eap":
        return gradients(dense, task, end, corrupted)
    total = torch.zeros(dense.U, dense.V, len(task), dtype=torch.float64)
    for step in range(STEPS):
        embedded = start + (step + 0.5) / STEPS * (end - start)
        # Only the difference of `other` from what a writer writes counts, and it must be that of the two real runs.
        here = dense.run(embedded).written
        total += gradients(dense, task, embedded, here - (clean - corrupted)) / STEPS
    return total


@pytest.mark.parametrize("method", ["eap", "eap_ig_inputs"])
def test_scores_equal_the_formulas_in_float64(lm: LanguageModel, dense: DenseLlama, task: Task, method: str) -> None:
    found = score_edges(lm, task, Scoring(method, STEPS), progress=False).values_UVSB[:, :, 0].double()
    expected = by_hand(dense, task, method)
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    assert float(expected.abs().max()) > 0.1


@pytest.mark.parametrize("method", ["eap", "eap_ig_inputs", "eap_ig_activations"])
def test_outgoing_edges_sum_to_the_writer(lm: LanguageModel, dense: DenseLlama, task: Task, method: str) -> None:
    """A writer that changes for all readers at once changes the residual stream: one gradient of its own output."""
    scores = score_edges(lm, task, Scoring(method, STEPS), progress=False)
    start, end = dense.embed(task.corrupted_BT), dense.embed(task.clean_BT)
    clean, corrupted = dense.run(end).written, dense.run(start).written
    if method != "eap_ig_activations":
        everywhere = torch.zeros(dense.U, len(task), dtype=torch.float64)
        for step in range(STEPS if "ig" in method else 1):
            embedded = start + (step + 0.5) / STEPS * (end - start) if "ig" in method else end
            here = dense.run(embedded).written - (clean - corrupted)
            for u in range(dense.U):
                share = torch.zeros((), dtype=torch.float64, requires_grad=True)
                mask = torch.zeros(dense.U, dense.V, dtype=torch.float64)
                mask[u] = 1
                values = difference(task, dense.run(embedded, mask * share, here).logits)
                for b, value in enumerate(values):
                    everywhere[u, b] -= torch.autograd.grad(value, share, retain_graph=True)[0]
        expected = everywhere.mean(1) / (STEPS if "ig" in method else 1)
        torch.testing.assert_close(scores.nodes_U.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        return
    # Integrated over all of a writer's change, its scores sum to what ablating it alone does.
    fine = score_edges(lm, task, Scoring(method, 200), progress=False).nodes_U.double()
    logits = dense.run(end).logits
    for u in (0, dense.H + 1, dense.U - 1):  # the embedding and the MLPs
        mask = torch.zeros(dense.U, dense.V, dtype=torch.float64)
        mask[u] = 1
        effect = difference(task, logits) - difference(task, dense.run(end, mask, corrupted).logits)
        assert float(fine[u]) == pytest.approx(float(effect.mean()), rel=2e-2, abs=2e-2)


def test_integrated_scores_of_the_embedding_are_complete(lm: LanguageModel, dense: DenseLlama, task: Task) -> None:
    found = score_edges(lm, task, Scoring("eap_ig_inputs", 200), progress=False).nodes_U[0]
    runs = [difference(task, dense.run(dense.embed(tokens)).logits).mean() for tokens in (task.clean_BT, task.corrupted_BT)]
    assert float(found) == pytest.approx(float(runs[0] - runs[1]), rel=1e-2)


@pytest.mark.parametrize("method", ["eap", "eap_ig_inputs", "eap_ig_activations"])
def test_identical_pairs_give_zero(lm: LanguageModel, task: Task, method: str) -> None:
    same = replace(task, corrupted=task.clean)
    assert not score_edges(lm, same, Scoring(method, 2), progress=False).values_UVSB.any()


@pytest.mark.parametrize("method", ["eap", "eap_ig_inputs", "eap_ig_activations"])
def test_neither_the_batch_nor_pads_change_scores(lm: LanguageModel, task: Task, method: str) -> None:
    together = score_edges(lm, task, Scoring(method, 3), progress=False).values_UVSB
    one_by_one = score_edges(lm, task, Scoring(method, 3, memory=1), progress=False).values_UVSB
    alone = torch.cat([score_edges(lm, task[b : b + 1], Scoring(method, 3), progress=False).values_UVSB for b in range(3)], -1)
    tolerance = 1e-5 * float(together.abs().max())
    torch.testing.assert_close(one_by_one, together, rtol=0, atol=tolerance)
    torch.testing.assert_close(alone, together, rtol=0, atol=tolerance)


def test_positions_add_up(lm: LanguageModel, task: Task) -> None:
    whole = score_edges(lm, task, progress=False)
    each = score_edges(lm, task, positions="each", progress=False)
    spans = score_edges(lm, task, positions="spans", progress=False)
    torch.testing.assert_close(each.values_UVSB.sum(2), whole.values_UVSB[:, :, 0], rtol=1e-4, atol=1e-4)
    assert spans.spans.names == ("start", "subject", "rest")
    torch.testing.assert_close(spans.values_UVSB[:, :, 1, 1], each.values_UVSB[:, :, 2:5, 1].sum(2), rtol=1e-4, atol=1e-4)
    assert str(spans.edges()[1]).endswith("q:0.0[subject]")
    with pytest.raises(ConfigError, match="overlap"):
        score_edges(lm, task, positions=["start", "0"], progress=False)


def test_eap_takes_two_forwards_and_one_backward(lm: LanguageModel, task: Task) -> None:
    forwards, backwards = [0] * lm.n_layers, [0] * lm.n_layers

    def count(layer: int) -> object:
        def after(module: object, args: object, output: Tensor) -> None:
            forwards[layer] += 1
            if output.requires_grad:
                output.register_hook(lambda grad: backwards.__setitem__(layer, backwards[layer] + 1))

        return after

    handles = [block.register_forward_hook(count(layer)) for layer, block in enumerate(lm.blocks)]  # type: ignore[arg-type]
    try:
        score_edges(lm, task, progress=False)
    finally:
        for handle in handles:
            handle.remove()
    assert (forwards, backwards) == ([2] * lm.n_layers, [1] * lm.n_layers)


def test_an_edge_that_does_not_exist_has_no_score(lm: LanguageModel, task: Task) -> None:
    scores = score_edges(lm, task, progress=False)
    wiring = scores.wiring
    assert not scores.values_UVSB[~wiring.possible_UV].any()
    H, L = lm.n_heads, lm.n_layers
    assert wiring.possible_UV.shape == (1 + L * (H + 1), L * (3 * H + 1) + 1)
    assert len(scores.edges()) == wiring.n_edges == len(scores.per_edge())
    assert "head:0.1->q:0.2" not in map(str, scores.edges())
    assert "head:0.1->site:mlp_in.0" in map(str, scores.edges())


def test_rankings_of_edges(lm: LanguageModel, task: Task) -> None:
    for name in ("eap", "eap_ig_inputs", "eap_ig_activations"):
        ranking = METHODS[name].function(lm, task, progress=False)
        scores = score_edges(lm, task, Scoring(name), progress=False)
        assert ranking.obtained["method"] == name
        assert len(ranking) == scores.wiring.n_edges
        best = ranking.top(1)
        assert best.scores[0] == pytest.approx(float(scores.mean_UVS.flatten()[scores.mean_UVS.abs().argmax()]), rel=1e-5)
        assert ranking.per_example is not None and ranking.per_example.shape[1] == len(task)


def test_bad_input_is_refused(lm: LanguageModel, task: Task) -> None:
    with pytest.raises(ConfigError, match="no gradient"):
        score_edges(lm, task, metric=lambda logits: logits.detach()[:, -1, 3], progress=False)
    with pytest.raises(ConfigError, match="one number for 3 prompts"):
        score_edges(lm, task, metric=lambda logits: logits.mean(), progress=False)
    with pytest.raises(ConfigError, match="no edge score"):
        Scoring("eap_ig")
    with pytest.raises(ConfigError, match="take no spaces"):
        METHODS["eap"].function(lm, task, spaces=[lm.space("heads.0")], progress=False)


def test_models_whose_heads_do_not_add_up_are_refused() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from saekit.lm import LanguageModel

    config = Gemma2Config(
        vocab_size=70,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    gemma = LanguageModel.attach(Gemma2ForCausalLM(config), None, bos="no")
    with pytest.raises(UnsupportedModel, match="normalises the output of its attention"):
        Wiring.of(gemma)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi"])
def test_writers_add_up_to_every_reader_in_other_families(family: str, task: Task) -> None:
    """Fused projections, biases, LayerNorm and position embeddings; the last two read attention and MLP in parallel."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from saekit.lm import LanguageModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 70}
    sizes |= {"bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 64}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    lm = LanguageModel.attach(model, None, bos="no")
    scores = score_edges(lm, task, progress=False)
    parallel = family != "gpt2"
    assert bool(scores.wiring.possible_UV[1, 12]) is not parallel  # head:0.0 -> mlp_in.0
    # A change of the embedding for all of its readers is a change of the first block's input.
    taps = Taps(lm, scores.wiring, grad=True)
    logits = taps.run(task.clean_BT)
    metric = Metric.of("logit_difference", task)
    (grad,) = torch.autograd.grad(metric.per_prompt(logits).sum(), taps.pre(0))
    other = Taps(lm, scores.wiring)
    other.run(task.corrupted_BT)
    expected = (grad * (taps.pre(0) - other.pre(0))).sum((1, 2)).detach()
    torch.testing.assert_close(scores.values_UVSB[0].sum((0, 1)), expected, rtol=1e-3, atol=1e-4)


def test_a_linear_model_is_exact() -> None:
    """With constant attention, constant norms and MLPs that write nothing, the score of an edge is its exact effect."""
    from saekit.locate.circuits import EdgeAblator

    lm = tiny_llama(None, vocab_size=64, hidden_size=16, num_hidden_layers=2, seed=1, rms_norm_eps=1e9)  # type: ignore[arg-type]
    with torch.no_grad():
        for layer in lm.model.model.layers:
            layer.self_attn.q_proj.weight.zero_()  # every query attends to all keys alike
            layer.mlp.down_proj.weight.zero_()
            layer.input_layernorm.weight.mul_(3e5)
            layer.self_attn.o_proj.weight.mul_(50)
        lm.model.model.norm.weight.mul_(3e5)
        lm.model.model.embed_tokens.weight.mul_(25)
    task = Task("pair", ((0, 5, 9, 13),), ((0, 5, 33, 13),), ((4,),), ((3,),))
    scores = score_edges(lm, task, progress=False)
    ablator = EdgeAblator(lm, task)
    keep = scores.wiring.possible_UV
    for u, v in scores.wiring.edge_places.tolist():
        if abs(float(scores.mean_UVS[u, v, 0])) < 1e-4:
            continue
        less = keep.clone()
        less[u, v] = False
        effect = float((ablator.intact_B - ablator.values(less[None])[0]).mean())
        assert float(scores.mean_UVS[u, v, 0]) == pytest.approx(effect, rel=1e-2, abs=1e-5)
    assert int((scores.mean_UVS.abs() > 1e-4).sum()) > 3
