"""What `saekit circuit --method eap` and the other methods of edges run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from saekit.cli.circuit_methods import CircuitFound, CircuitRequest
from saekit.cli.subject import Subject
from saekit.errors import ConfigError

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.locate.circuits import Circuit, EdgeAblator, EdgeScores
    from saekit.locate.circuits.measure import AnyMetric
    from saekit.tasks import Task

_SHARE = 0.05
_COMMON: dict[str, Any] = {
    "evaluate": False,
    "metric": "",
    "positions": "",
    "ablation": "counterfactual",
}
_OF_SCORES: dict[str, Any] = {"edges": 0, "choose": "greedy", "by": "highest", "refine": False}
_STEPS: dict[str, Any] = {"steps": 10}
_TAU: dict[str, Any] = {"tau": 0.01}


def _options(method: str) -> dict[str, Any]:
    """The options of a method, with their defaults."""
    if method == "acdc":
        return _COMMON | _TAU
    return _COMMON | _OF_SCORES | ({} if method == "eap" else _STEPS)


def edges(subject: Subject, request: CircuitRequest) -> CircuitFound:
    """The edges between heads, MLPs, the embedding and the logits that carry the behaviour of a task.

    Raises:
        ConfigError: an option does not fit, or the task has no pairs of prompts.
        UnsupportedModel: the model's heads and MLPs do not add up to its residual stream.
    """
    from saekit.files import document
    from saekit.locate.circuits import circuit_dict, circuit_graphml
    from saekit.locate.data import data_of
    from saekit.report.circuit import write_circuit_page
    from saekit.tasks import Task

    lm = subject.lm
    chosen = _COMMON | _OF_SCORES | _STEPS | _TAU | request.options(_options(request.method))
    chosen["method"], chosen["progress"] = request.method, request.progress
    if chosen["edges"] < 0:
        raise ConfigError("The number of edges is negative.", "Give a number from 1.")
    assert request.task is not None
    data = data_of(lm, request.task, request.choice)
    if not isinstance(data, Task):
        raise ConfigError(
            f"{request.task} holds no clean and corrupted prompts.", "Give a file with clean, corrupted, answer and foil."
        )
    found, scores, ablator = _find(lm, data, chosen)
    evaluation = _evaluated(found, scores, ablator, chosen) if chosen["evaluate"] and ablator is not None else None
    facts = {"model": lm.name, "task": data.name, "prompts": len(data), "method": request.method}
    facts |= {
        "metric": chosen["metric"] or ("kl" if request.method == "acdc" else "logit_difference"),
        "ablation": chosen["ablation"],
        "share": found.share,
    }
    facts |= {"evaluation": evaluation} if evaluation else {}
    written = circuit_dict(found, facts)
    rows = sorted(written["edges"], key=lambda each: -abs(each["score"] or 0.0))
    return CircuitFound(
        written,
        [{"edge": each["edge"], "score": each["score"] or 0.0} for each in rows],
        _summary(found, evaluation),
        {"json": lambda: document(written) + "\n", "graphml": lambda: circuit_graphml(written)},
        lambda path: write_circuit_page(written, path, evaluation),
    )


def _metric(chosen: dict[str, Any]) -> AnyMetric:
    """The metric; None for the default of the task."""
    from saekit.locate.methods import named_metric

    return named_metric(chosen["metric"] or ("kl" if chosen["method"] == "acdc" else None))


def _find(lm: LanguageModel, data: Task, chosen: dict[str, Any]) -> tuple[Circuit, EdgeScores | None, EdgeAblator | None]:
    """The circuit; the scores of all edges, where there are any; and what runs circuits, where it is needed."""
    from saekit.locate.circuits import Ablation, EdgeAblator, Scoring, choose, prune, refine, score_edges

    positions, progress, ablation = _positions(chosen["positions"]), chosen["progress"], Ablation(chosen["ablation"])
    if chosen["method"] == "acdc":
        ablator = EdgeAblator(lm, data, _metric(chosen), ablation, positions)
        return prune(ablator, chosen["tau"], progress=progress).scored(), None, ablator
    scoring = Scoring(chosen["method"], chosen["steps"])
    scores = score_edges(lm, data, scoring, metric=_metric(chosen), positions=positions, progress=progress)
    total = scores.wiring.n_edges * len(scores.spans)
    n = min(total, chosen["edges"] or int(_SHARE * total))
    needed = chosen["evaluate"] or chosen["refine"]
    runner = EdgeAblator(lm, data, _metric(chosen), ablation, positions) if needed else None
    (found,) = choose(scores, [min(total, 2 * n) if chosen["refine"] else n], chosen["by"], chosen["choose"])
    if chosen["refine"] and runner is not None:
        found = refine(runner, found, n, progress=progress)
    return found, scores, runner


def _evaluated(found: Circuit, scores: EdgeScores | None, ablator: EdgeAblator, chosen: dict[str, Any]) -> dict[str, Any]:
    from saekit.locate.circuits import curve, evaluate

    measured = evaluate(ablator, found).to_dict()
    if scores is None:
        return measured
    return measured | curve(ablator, scores, by=chosen["by"], how=chosen["choose"], progress=chosen["progress"]).to_dict()


def _positions(text: str) -> Any:
    """None, "each", "spans", or a list of names."""
    if text in ("", "each", "spans"):
        return text or None
    return [part.strip() for part in text.split(",") if part.strip()]


def _summary(found: Circuit, evaluation: dict[str, Any] | None) -> list[str]:
    said = [f"{len(found):,} edges, {found.share:.1%} of all; a positive score supports the behaviour"]
    if evaluation is None:
        return said
    if "curve" in evaluation:
        said += [
            f"  {row['share']:>6.1%} of the edges, {row['edges']:,} after pruning: faithfulness {row['faithfulness']:.3f}"
            for row in evaluation["curve"]
        ]
        said.append(f"CPR {evaluation['cpr']:.3f}, CMD {evaluation['cmd']:.3f}")
    said.append(f"faithfulness {evaluation['faithfulness']:.3f}, completeness {evaluation['completeness']:.3f}")
    said.append(f"metric {evaluation['intact']:.4g} intact, {evaluation['ablated']:.4g} with all edges ablated")
    return said
