"""Feature circuits with error nodes: against finite differences, the sum rule of edges, and ablation by dense formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from saekit.errors import ConfigError, InterventionError
from saekit.lm import LanguageModel
from saekit.locate.graphs import feature_circuit, feature_edges, feature_faithfulness, nodes_needed
from saekit.names.edge import Edge
from saekit.objects import raw_space, spaces_of
from saekit.sae import SAE
from saekit.tasks import Task
from tests.kit import frozen

TASK = Task(
    "random",
    clean=((1, 11, 24, 37, 11, 6), (1, 9, 30, 12, 44, 7), (1, 20, 21, 22)),
    corrupted=((1, 13, 24, 36, 11, 6), (1, 9, 31, 12, 40, 7), (1, 20, 28, 22)),
    answers=((5,), (6,), (7,)),
    foils=((8,), (9,), (10,)),
)
SITES = ("resid_post.0", "attn_out.1", "resid_post.1")


@pytest.fixture
def lm(make_sae: Callable[..., SAE]) -> Iterator[LanguageModel]:
    """A model with SAEs of three kinds."""
    lm = frozen.model("llama")
    for number, (site, kind) in enumerate(zip(SITES, ("topk", "jumprelu", "gated"))):
        lm.attach_sae(site, make_sae(kind, frozen.D, 30, seed=number).double())
    yield lm
    lm.detach_sae()


def _metric(lm: LanguageModel, edits: list[object], rows: slice = slice(None)) -> torch.Tensor:
    logits = lm.run(TASK.clean_BT[rows], attention_mask=TASK.mask_BT[rows], edits=edits).logits
    assert logits is not None
    last = logits[torch.arange(len(logits)), TASK.last_B[rows]]
    return last.gather(1, TASK.answer_B[rows, None])[:, 0] - last.gather(1, TASK.foil_B[rows, None])[:, 0]


@pytest.mark.parametrize("positions", [None, "each"])
def test_scores_are_derivatives_times_changes(lm: LanguageModel, positions: str | None) -> None:
    from saekit.lm.run.edits import Edit

    ranking = feature_circuit(lm, TASK, positions=positions, progress=False)  # type: ignore[arg-type]
    assert {str(ref).partition("/")[0].partition("[")[0] for ref in ranking.refs} == {
        f"{kind}:{site}" for kind in ("feature", "error") for site in SITES
    }
    values = ranking.per_example
    assert values is not None
    spaces = {space.site: space for space in spaces_of(lm, "features")}
    errors = {space.site: space for space in spaces_of(lm, "error")}
    reads = [lm.run(rows, attention_mask=TASK.mask_BT, read=SITES) for rows in (TASK.clean_BT, TASK.corrupted_BT)]
    for number in np.random.default_rng(0).choice(len(ranking), 8, replace=False).tolist() + [len(ranking) - 1]:
        ref = ranking.refs[number]
        space = errors[ref.site] if ref.kind == "error" else spaces[ref.site]
        unit = 0 if ref.kind == "error" else ref.unit
        a, b = (space.read(run[ref.site], [unit]) for run in reads)
        step = 0.01 * (b - a)  # norms compute in float32
        here = (slice(None), slice(None) if ref.position is None else slice(int(ref.position), int(ref.position) + 1))

        def moved(x, at, sign, here=here, step=step, space=space, unit=unit):  # type: ignore[no-untyped-def]
            whole = torch.zeros_like(step)
            whole[here] = step[here]
            return space.add(x, [unit], sign * whole[at.batch_N, at.position_N])

        ends = [_metric(lm, [Edit(ref.site, lambda x, at, s=s: moved(x, at, s))]) for s in (1, -1)]
        assert values[number].double() == pytest.approx((ends[1] - ends[0]) / 0.02, rel=2e-3, abs=5e-5)


@pytest.mark.parametrize(("positions", "last"), [(None, False), ("each", False), (None, True)])
def test_the_edges_of_a_node_add_up_to_its_score(
    lm: LanguageModel, make_sae: Callable[..., SAE], positions: str | None, last: bool
) -> None:
    if last:  # nothing before the dictionary after the last block reaches the metric around it
        lm.attach_sae("resid_post.2", make_sae("standard", frozen.D, 30, seed=9).double())
    ranking = feature_circuit(lm, TASK, positions=positions, batch_size=2, progress=False)  # type: ignore[arg-type]
    edges = feature_edges(lm, TASK, ranking.refs, batch_size=2, progress=False)
    sums = dict.fromkeys(ranking.refs, 0.0)
    for edge, score in edges.items():
        assert isinstance(edge, Edge)
        sums[edge.source] += score
    # A latent that fires only off the clean prompts has no derivative there, so every child of a node is in the ranking or at 0.
    assert [sums[ref] for ref in ranking.refs] == pytest.approx(list(ranking.scores), rel=1e-4, abs=1e-6)
    if last:
        to_metric = {edge.source.site for edge in edges if str(edge.target) == "site:logits"}
        assert {str(site) for site in to_metric} == {"resid_post.2"}
    if positions == "each":
        assert all(int(e.source.position) <= int(e.target.position) for e in edges if e.target.position is not None)


def test_many_targets_in_one_backward_pass_give_what_single_ones_give(lm: LanguageModel) -> None:
    refs = feature_circuit(lm, TASK, progress=False).top(12).refs
    together, alone = (feature_edges(lm, TASK, refs, memory=memory, progress=False) for memory in (1 << 28, 1))
    assert dict(together) == pytest.approx(dict(alone), rel=1e-5, abs=1e-8)


def test_integrated_scores_of_a_site_are_complete(lm: LanguageModel) -> None:
    from saekit.lm.run.edits import Edit

    ranking = feature_circuit(lm, TASK, steps=40, progress=False)
    (corrupted,) = lm.run(TASK.corrupted_BT, attention_mask=TASK.mask_BT, read=["resid_post.1"]).acts.values()
    change = _metric(lm, []) - _metric(lm, [Edit(lm.site("resid_post.1"), lambda x, at: corrupted[at.batch_N, at.position_N])])
    assert ranking.per_example is not None
    own = [n for n, ref in enumerate(ranking.refs) if str(ref.site) == "resid_post.1"]
    assert ranking.per_example[own].sum(0).double() == pytest.approx(change, rel=2e-3, abs=1e-4)


def test_faithfulness_is_that_of_dense_ablation(lm: LanguageModel) -> None:
    from saekit.lm.run.edits import Edit

    ranking = feature_circuit(lm, TASK, progress=False)
    refs = list(ranking.refs)
    circuit = [ref for n, ref in enumerate(refs) if n % 3 and str(ref) != "error:resid_post.0"]
    whole, nothing, some = feature_faithfulness(lm, TASK, [refs, [], circuit], progress=False)
    assert whole == pytest.approx(1, abs=1e-6) and nothing == pytest.approx(0, abs=1e-6)
    corrupted = lm.run(TASK.corrupted_BT, attention_mask=TASK.mask_BT, read=SITES)

    def ablated(kept: set[str]) -> float:
        def fn(site: str) -> Callable[..., torch.Tensor]:
            sae = lm.dictionaries[lm.site(site)]
            keep_F = torch.tensor([f"feature:{site}/{unit}" in kept for unit in range(30)])

            def edit(x, at):  # type: ignore[no-untyped-def]
                other = corrupted[site][at.batch_N, at.position_N]
                f, f_other = sae.encode_dense(x), sae.encode_dense(other)
                error = x - sae.decode(f) if f"error:{site}" in kept else other - sae.decode(f_other)
                return sae.decode(torch.where(keep_F, f, f_other)) + error

            return edit

        return float(_metric(lm, [Edit(lm.site(site), fn(site)) for site in SITES]).mean())

    m, empty = ablated(set(map(str, circuit))), ablated(set())
    assert some == pytest.approx((m - empty) / (float(_metric(lm, []).mean()) - empty), rel=1e-4)


def test_coordinates_of_the_same_sites_are_a_circuit_of_neurons(lm: LanguageModel) -> None:
    spaces = [raw_space(lm, lm.site(site)) for site in SITES]
    ranking = feature_circuit(lm, TASK, spaces=spaces, progress=False)
    assert len(ranking) == 3 * frozen.D
    edges = feature_edges(lm, TASK, ranking.refs, spaces=spaces, progress=False)
    sums = dict.fromkeys(ranking.refs, 0.0)
    for edge, score in edges.items():
        sums[edge.source] += score
    assert sums == pytest.approx(dict(ranking), rel=1e-4, abs=1e-6)
    needed, curve = nodes_needed(lm, TASK, ranking, spaces=spaces, sizes=(1, 10), progress=False)
    assert needed is not None and curve[-1] == (len(ranking), pytest.approx(1, abs=1e-6))


def test_what_does_not_fit_is_refused(lm: LanguageModel, make_sae: Callable[..., SAE]) -> None:
    with pytest.raises(ConfigError, match="none of the spaces"):
        feature_edges(lm, TASK, ["head:0.1"], progress=False)
    with pytest.raises(ConfigError, match="has no nodes for the heads"):
        feature_circuit(lm, TASK, spaces=spaces_of(lm, "heads"), progress=False)
    lm.attach_sae("resid_post.1", make_sae("topk", frozen.D, 30, normalize_activations="layer_norm").double())
    with pytest.raises(InterventionError, match="closed form"):
        feature_edges(lm, TASK, feature_circuit(lm, TASK, progress=False).refs, progress=False)
