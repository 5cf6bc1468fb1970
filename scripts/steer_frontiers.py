"""What sections of scripts/bench_steer.py that compare methods at equal KL share: arms, intervals over concepts and prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from saekit.cli.output import table
from saekit.errors import SaekitError
from saekit.evaluate.steering.frontier import Arm, Frontier, Prompting
from saekit.steer import add
from saekit.steer.vectors import fit_vector
from saekit.tasks import Contrast
from saekit.workspace import Workspace
from saekit.workspace.by_concept import Trial, steering_features

BUDGETS = (0.1, 0.25, 0.6, 1.5)
"""Mean KL on neutral text, in nats a token. A change of the language needs the most; a persona falls apart there."""
RESAMPLES = 2000
CLEAR = 0.5
"""A method fails on a concept where its mean success over the budgets is below half of the mean difference's."""
METHODS = ("sae", "diffmean", "pca", "probe", "trained", "random")
"""Methods that fit a vector."""
FIT_OPTIONS: Mapping[str, Mapping[str, Any]] = {}


def arms(
    ws: Workspace, site: str, name: str, contrast: Contrast, prompting: str, trial: Trial | None = None
) -> tuple[dict[str, Arm], dict[str, Any]]:
    """The methods of one concept, and facts about them.

    The feature by name is the best of a trial of what a search for the name finds, on texts of the corpus (`saekit steer
    --concept`); the first hit is that of a search by the words that features make the model say, untried. All other methods but
    random and prompting are fitted to the contrast.
    """
    lm, found, facts = ws.lm, {}, {}
    try:
        tried = steering_features(ws, name, site, trial=trial, progress=False)
    except SaekitError as error:
        tried, facts = [], {"feature by name": error.what}
    if tried:
        best = tried[0]
        found["feature by name"] = add(best.record.ref, "1norm").resolve(lm, norms=ws.median_norm)
        facts = {"feature": best.record.feature, "label": best.record.label, "why": best.why, "tried": best.effect}
    with ws.database() as database:
        hits = database.search(name, k=1, dictionary=site, by="says")
    if hits:
        facts["first hit"] = hits[0].feature
        found["first hit"] = add(hits[0].ref, "1norm").resolve(lm, norms=ws.median_norm)
    for method in METHODS:
        try:
            vector = fit_vector(lm, contrast, site, method, options=dict(FIT_OPTIONS.get(method, {})))
        except SaekitError as error:
            facts[method] = error.what
            continue
        found[method] = add(vector.target, "1norm").resolve(lm, norms=ws.median_norm)
    return {**found, "prompting": Prompting(prompting)}, facts


def row_of(name: str, kind: str, measured: Frontier, facts: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values of one concept."""
    points = [
        {"arm": each.arm, "budget": each.budget, "kl": each.kl, "scores": list(each.scores), "perplexity": each.perplexity}
        | {"sample": each.sample}
        for each in measured.points
    ]
    base = {"scores": list(measured.baseline.scores), "perplexity": measured.baseline.perplexity}
    return {"concept": name, "kind": kind, "baseline": base, "points": points, "failures": dict(measured.failures), **facts}


def _scores(row: Mapping[str, Any], arm: str, budget: float | None) -> list[float]:
    """Success on each prompt; without a budget, the mean over budgets. A strength that does not exist reaches nothing."""
    if arm == "unsteered":
        return list(row["baseline"]["scores"])
    if budget is not None or arm == "prompting":
        wanted = None if arm == "prompting" else budget
        own = [point["scores"] for point in row["points"] if point["arm"] == arm and point["budget"] == wanted]
        return list(own[0]) if own else [0.0] * len(row["baseline"]["scores"])
    columns = [_scores(row, arm, each) for each in BUDGETS]
    return [sum(values) / len(values) for values in zip(*columns)]


def resampled(rows: Sequence[Mapping[str, Any]], names: Sequence[str], budget: float | None = None) -> dict[str, torch.Tensor]:
    """For each arm the mean success of each resample (R,): concepts are drawn again, then the prompts of each drawn concept.

    The same draws serve all arms, so that differences and ratios of arms are paired.
    """
    scores_CP = {arm: torch.tensor([_scores(row, arm, budget) for row in rows], dtype=torch.double) for arm in names}
    concepts, prompts = next(iter(scores_CP.values())).shape
    generator = torch.Generator().manual_seed(0)
    c_RC = torch.randint(concepts, (RESAMPLES, concepts), generator=generator)
    p_RCP = torch.randint(prompts, (RESAMPLES, concepts, prompts), generator=generator)
    return {arm: scores[c_RC[:, :, None], p_RCP].mean((1, 2)) for arm, scores in scores_CP.items()}


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each arm: mean success at each budget and over budgets, with a 95 % interval, and its ratio to DiffMean's."""
    names = ["unsteered", *dict.fromkeys(point["arm"] for row in rows for point in row["points"])]
    drawn = resampled(rows, names)
    found = []
    for arm in names:
        at = {f"KL {budget:g}": _mean(rows, arm, budget) for budget in BUDGETS}
        low, high = torch.quantile(drawn[arm], torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
        row = {"arm": arm, **at, "mean": _mean(rows, arm, None), "low": low, "high": high}
        if "diffmean" in drawn:
            ratio = torch.quantile(
                drawn[arm] / drawn["diffmean"].clamp_min(1e-9), torch.tensor([0.025, 0.975], dtype=torch.double)
            ).tolist()
            row["of diffmean"] = row["mean"] / max(_mean(rows, "diffmean", None), 1e-9)
            row["ratio low"], row["ratio high"] = ratio
        kls = [point["kl"] for one in rows for point in one["points"] if point["arm"] == arm and point["budget"] is None]
        found.append(row | ({"own KL": sum(kls) / len(kls)} if kls else {}))
    return found


def _mean(rows: Sequence[Mapping[str, Any]], arm: str, budget: float | None) -> float:
    values = [value for row in rows for value in _scores(row, arm, budget)]
    return sum(values) / len(values)


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the summary, each concept, and the failures."""
    numbers = [
        {key: f"{value:.2f}" if isinstance(value, float) else value for key, value in row.items()} for row in summary(rows)
    ]
    table(numbers, title=f"success at equal KL, {len(rows)} concepts, {len(rows[0]['baseline']['scores'])} prompts each")
    names = list(dict.fromkeys(point["arm"] for row in rows for point in row["points"]))
    table(
        [
            {"concept": row["concept"], "unsteered": f"{_mean([row], 'unsteered', None):.2f}"}
            | {arm: f"{_mean([row], arm, None):.2f}" for arm in names}
            for row in rows
        ],
        title="mean over the budgets",
    )
    for row in rows:
        reference = _mean([row], "diffmean", None)
        bad = [
            arm for arm in ("feature by name", "sae", "trained") if arm in names and _mean([row], arm, None) < CLEAR * reference
        ]
        for arm in bad:
            found = f": {row.get('why', 'nothing was found')}" if arm == "feature by name" else ""
            print(f"fails: {arm} on {row['concept']}{found}")
