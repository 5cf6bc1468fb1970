"""Circuit methods as the registry of methods runs them: rankings of edges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError
from saekit.locate.circuits.ablation import Ablation, EdgeAblator
from saekit.locate.circuits.acdc import prune
from saekit.locate.circuits.circuit import Circuit
from saekit.locate.circuits.measure import AnyMetric
from saekit.locate.circuits.scores import EdgeScores, Scoring, score_edges
from saekit.locate.circuits.spans import REST
from saekit.locate.scored import ranked
from saekit.tasks import Ranking, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from saekit.lm import LanguageModel
    from saekit.objects import Space


def eap(
    lm: LanguageModel,
    data: Task,
    *,
    spaces: Sequence[Space] | None = None,
    metric: AnyMetric = None,
    positions: Any = None,
    progress: bool = True,
) -> Ranking:
    """Edge attribution patching; see :func:`saekit.locate.circuits.score_edges`."""
    return _scored(lm, data, Scoring("eap"), spaces, metric, positions, progress)


def eap_ig_inputs(
    lm: LanguageModel,
    data: Task,
    *,
    spaces: Sequence[Space] | None = None,
    metric: AnyMetric = None,
    positions: Any = None,
    steps: int = 10,
    progress: bool = True,
) -> Ranking:
    """EAP with integrated gradients along the embedding; see :func:`saekit.locate.circuits.score_edges`."""
    return _scored(lm, data, Scoring("eap_ig_inputs", steps), spaces, metric, positions, progress)


def eap_ig_activations(
    lm: LanguageModel,
    data: Task,
    *,
    spaces: Sequence[Space] | None = None,
    metric: AnyMetric = None,
    positions: Any = None,
    steps: int = 10,
    progress: bool = True,
) -> Ranking:
    """EAP with integrated gradients along the writers' outputs; see :func:`saekit.locate.circuits.score_edges`."""
    return _scored(lm, data, Scoring("eap_ig_activations", steps), spaces, metric, positions, progress)


def acdc(
    lm: LanguageModel,
    data: Task,
    *,
    spaces: Sequence[Space] | None = None,
    metric: AnyMetric = "kl",
    positions: Any = None,
    tau: float = 0.01,
    ablation: str = "counterfactual",
    progress: bool = True,
) -> Ranking:
    """The edges that ACDC keeps, with what the metric lost when each was removed; see :func:`saekit.locate.circuits.prune`."""
    _check_spaces(spaces)
    ablator = EdgeAblator(lm, data, metric or "kl", Ablation(ablation), positions)
    found = prune(ablator, tau, progress=progress)
    edges, scores_NB = of_circuit(found.circuit, EdgeScores(ablator.wiring, ablator.spans, found.effects_UVSB))
    if not edges:
        raise ConfigError(f"No edge lowers the metric by tau = {tau} when it is removed.", "Choose a smaller tau.")
    facts: dict[str, Any] = {"tau": tau, "ablation": ablation}
    return ranked(edges, scores_NB, method="acdc", lm=lm, data=data, metric=ablator.measure.metric, **facts)


def of_circuit(circuit: Circuit, scores: EdgeScores) -> tuple[list[Any], Any]:
    """The edges of a circuit, and their scores (N, B)."""
    return list(circuit.edges), scores.values_UVSB[tuple(circuit.places.T)]


def ranking_of(lm: LanguageModel, data: Task, scores: EdgeScores) -> Ranking:
    """The scores of all edges as a ranking with intervals."""
    facts = {key: value for key, value in scores.obtained.items() if key not in ("method", "metric")}
    names = [name for name in scores.spans.names if name not in (None, REST)]
    if names:
        facts["positions"] = names
    return ranked(
        scores.edges(), scores.per_edge(), method=scores.obtained["method"], lm=lm, data=data, metric=scores.metric, **facts
    )


def _scored(
    lm: LanguageModel,
    data: Task,
    scoring: Scoring,
    spaces: Sequence[Space] | None,
    metric: AnyMetric,
    positions: Any,
    progress: bool,
) -> Ranking:
    _check_spaces(spaces)
    return ranking_of(lm, data, score_edges(lm, data, scoring, metric=metric, positions=positions, progress=progress))


def _check_spaces(spaces: Sequence[Space] | None) -> None:
    if spaces is not None:
        raise ConfigError("Circuits of edges join heads and MLPs; they take no spaces.", "Leave --space out.")
