"""Runs of circuits against a model written out in float64, and the identities of ablation."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.locate.circuits import (
    Ablation,
    Circuit,
    Curve,
    EdgeAblator,
    Scoring,
    Spans,
    curve,
    evaluate,
    faithfulness,
    greedy,
    prune,
    score_edges,
    top,
)
from saekit.locate.registry import METHODS
from tests.kit.dense_llama import DenseLlama

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.tasks import Task


def difference(task: Task, logits_BTV: Tensor) -> Tensor:
    rows = torch.arange(len(task))
    last = logits_BTV[rows, task.last_B]
    return last[rows, task.answer_B] - last[rows, task.foil_B]


def some_circuits(ablator: EdgeAblator, n: int) -> Tensor:
    """(n, U, V): random sets of edges, from few to most."""
    generator = torch.Generator().manual_seed(0)
    shape = ablator.wiring.possible_UV.shape
    shares = torch.linspace(0.1, 0.95, n)[:, None, None]
    return (torch.rand(n, *shape, generator=generator) < shares) & ablator.wiring.possible_UV


@pytest.mark.parametrize("to", ["counterfactual", "mean", "zero"])
def test_circuits_are_runs_with_other_streams(lm: LanguageModel, dense: DenseLlama, task: Task, to: str) -> None:
    ablator = EdgeAblator(lm, task, ablation=Ablation(to))
    keep = some_circuits(ablator, 5)
    found = ablator.values(keep)
    embedded, corrupted = dense.embed(task.clean_BT), dense.run(dense.embed(task.corrupted_BT)).written
    carried = {
        "counterfactual": corrupted,
        "mean": corrupted[:, task.mask_BT.bool()].mean(1)[:, None, None].expand_as(corrupted),
        "zero": torch.zeros_like(corrupted),
    }[to]
    for k, circuit in enumerate(keep):
        expected = difference(task, dense.run(embedded, (~circuit).double(), carried).logits)
        torch.testing.assert_close(found[k], expected, rtol=1e-3, atol=1e-3)
    assert float(found.std(0).min()) > 0.05


def test_no_edge_is_the_corrupted_run_and_all_edges_the_clean_one(lm: LanguageModel, task: Task) -> None:
    ablator = EdgeAblator(lm, task)
    clean, corrupted = (difference(task, lm.run(tokens).logits) for tokens in (task.clean_BT, task.corrupted_BT))  # type: ignore[arg-type]
    whole = Circuit.whole(ablator.wiring, ablator.spans)
    values = ablator.values([whole.keep_UVS, torch.zeros_like(whole.keep_UVS)])
    torch.testing.assert_close(values[0], clean.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values[1], corrupted.double(), rtol=1e-5, atol=1e-5)
    assert faithfulness(ablator, [whole, whole.complement()]) == pytest.approx([1, 0], abs=1e-5)


@pytest.mark.parametrize("to", ["mean", "zero"])
def test_faithfulness_of_none_and_all(lm: LanguageModel, task: Task, to: str) -> None:
    ablator = EdgeAblator(lm, task, ablation=Ablation(to))
    whole = Circuit.whole(ablator.wiring, ablator.spans)
    assert faithfulness(ablator, [whole, whole.complement()]) == pytest.approx([1, 0], abs=1e-5)


def test_neither_the_batch_nor_pads_change_runs(lm: LanguageModel, task: Task) -> None:
    together = EdgeAblator(lm, task)
    keep = some_circuits(together, 4)
    expected = together.values(keep)
    one_by_one = EdgeAblator(lm, task, ablation=Ablation(memory=1)).values(keep)
    alone = torch.cat([EdgeAblator(lm, task[b : b + 1]).values(keep) for b in range(3)], 1)
    for found in (one_by_one, alone, torch.cat([together.values(each[None]) for each in keep])):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_positions_of_edges(lm: LanguageModel, task: Task) -> None:
    """An edge at every position is an edge; edges into the logits count at the last position alone."""
    plain, spans = EdgeAblator(lm, task), EdgeAblator(lm, task, positions=["last"])
    keep = some_circuits(plain, 3)
    torch.testing.assert_close(spans.values(keep[..., None].expand(-1, -1, -1, 2)), plain.values(keep), rtol=1e-4, atol=1e-4)
    some = keep[2][..., None].repeat(1, 1, 2)
    without_rest = some.clone()
    without_rest[:, -1, 1] = False  # the logits are read at the last position only
    torch.testing.assert_close(spans.values(some[None]), spans.values(without_rest[None]), rtol=1e-5, atol=1e-5)
    less = some.clone()
    less[:, -1, 0] = False
    assert float((spans.values(some[None]) - spans.values(less[None])).abs().max()) > 0.05


@pytest.mark.parametrize("family", ["gpt2", "phi"])
def test_other_families_run_the_identities(family: str, task: Task) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from saekit.lm import LanguageModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 70}
    sizes |= {"bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 64}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    lm = LanguageModel.attach(model, None, bos="no")
    ablator = EdgeAblator(lm, task)
    whole = Circuit.whole(ablator.wiring, ablator.spans)
    # An edge that is removed alone changes the metric as the first order says, where the change is small.
    scores = score_edges(lm, replace(task, corrupted=task.clean), progress=False)
    assert not scores.values_UVSB.any()
    assert faithfulness(ablator, [whole, whole.complement()]) == pytest.approx([1, 0], abs=1e-4)
    # Without one edge that is not there, a circuit of all but one edge still differs from the whole.
    place = ablator.wiring.place("site:mlp_out.1->site:logits")
    less = whole.keep_UVS.clone()
    less[place] = False
    (f,) = faithfulness(ablator, [replace(whole, keep_UVS=less)])
    # Removing the last MLP's only edge is replacing its output by that of the corrupted run.
    run = lm.run(task.clean_BT, read=["mlp_out.1", "resid_post.1"], logits=None)
    other = lm.run(task.corrupted_BT, read=["mlp_out.1"], logits=None)
    logits = lm.unembed(run["resid_post.1"] - run["mlp_out.1"] + other["mlp_out.1"])
    intact, ablated = ablator.intact_B.mean(), ablator.ablated_B.mean()
    assert f == pytest.approx(float((difference(task, logits.detach()).double().mean() - ablated) / (intact - ablated)), abs=1e-4)


def test_evaluation_of_a_circuit(lm: LanguageModel, task: Task) -> None:
    ablator = EdgeAblator(lm, task)
    scores = score_edges(lm, task, Scoring("eap_ig_inputs"), progress=False)
    circuit = greedy(scores, 12)
    found = evaluate(ablator, circuit, minimality=True)
    f, rest = faithfulness(ablator, [circuit, circuit.complement()])
    assert (found.faithfulness, found.completeness) == pytest.approx((f, rest), abs=1e-6)
    assert len(found.minimality) == len(circuit) == found.edges
    less = [circuit.without(Circuit.of(circuit.wiring, [edge], circuit.spans)) for edge in circuit.edges]
    assert found.minimality == pytest.approx([f - each for each in faithfulness(ablator, less)], abs=1e-5)
    ends = curve(ablator, scores, grid=(0.0, 0.5, 1.0))
    assert ends.faithfulness[0] == pytest.approx(0, abs=1e-5)
    assert ends.faithfulness[-1] == pytest.approx(1, abs=1e-5)


def test_areas_of_a_curve() -> None:
    line = Curve((0.0, 0.5, 1.0), (0, 5, 10), (0.0, 1.5, 1.0))
    assert line.cpr == pytest.approx(0.5 * 0.75 + 0.5 * 1.25)
    assert line.cmd == pytest.approx(0.5 * 0.75 + 0.5 * 0.25)


def test_acdc_is_one_removal_after_another(lm: LanguageModel, task: Task) -> None:
    """The batches of removals give what single removals give, each judged on the circuit of that moment."""
    ablator = EdgeAblator(lm, task, metric="kl")
    tau = 0.05
    found = prune(ablator, tau, progress=False)
    keep = Circuit.whole(ablator.wiring, ablator.spans).keep_UVS
    current = float(ablator.intact_B.mean())
    for v in reversed(range(keep.shape[1])):
        for u in reversed(range(keep.shape[0])):
            if not ablator.wiring.possible_UV[u, v]:
                continue
            less = keep.clone()
            less[u, v] = False
            value = float(ablator.values(less[None]).mean())
            if current - value < tau:
                keep, current = less, value
    assert torch.equal(found.circuit.keep_UVS, keep)
    assert 0 < len(found.circuit) < ablator.wiring.n_edges
    ranking = METHODS["acdc"].function(lm, task, tau=tau, progress=False)
    assert set(ranking.refs) == set(found.circuit.edges)
    assert min(ranking.scores) >= tau
    with pytest.raises(ConfigError, match="tau"):
        prune(ablator, -1.0, progress=False)


def test_identical_pairs_have_nothing_to_explain(lm: LanguageModel, task: Task) -> None:
    ablator = EdgeAblator(lm, replace(task, corrupted=task.clean))
    values = ablator.values(some_circuits(ablator, 2))
    torch.testing.assert_close(values, ablator.intact_B.expand(2, -1), rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="no circuit explains it"):
        faithfulness(ablator, [Circuit.whole(ablator.wiring, ablator.spans)])


def test_bad_circuits_are_refused(lm: LanguageModel, task: Task) -> None:
    ablator = EdgeAblator(lm, task)
    with pytest.raises(ConfigError, match="do not fit"):
        ablator.values(torch.zeros(1, 3, 3, dtype=torch.bool))
    with pytest.raises(ConfigError, match="cannot be ablated to"):
        Ablation("median")
    with pytest.raises(ConfigError, match="no group of positions"):
        Circuit.of(ablator.wiring, ["head:0.0[4]->site:logits[4]"])
    assert len(top(score_edges(lm, task, progress=False), 0)) == 0
    assert Spans.of(task).names == (None,)
