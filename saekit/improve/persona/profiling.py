"""Profiling: what the persona of a reply will be, read from the prompt."""

from __future__ import annotations

from typing import Any

import torch

from saekit.evaluate.changed import Change
from saekit.improve.judges import judge_of
from saekit.improve.probing import auc, last_tokens, probe, sites_of, validated
from saekit.improve.report import Report
from saekit.improve.trial import Trial


def foresee(trial: Trial) -> Report:
    """Probe the last token of each prompt, layer by layer, for whether the reply will be in the persona.

    The layer is chosen by cross-validation on the prompts for fitting. The score of a held-out prompt is 1 where the probe is
    right. Controls: a probe of the embeddings, and a probe of shuffled labels (selectivity, Hewitt and Liang 2019).
    """
    judge = judge_of(trial.fit("pairs"))
    fit, held_out = trial.fit("prompts"), trial.held_out("prompts")
    sites = sites_of(trial.lm)
    x_fit, x_out = (last_tokens(trial.lm, trial.lm.text.ids(prompts), sites) for prompts in (fit, held_out))
    y_fit, y_out = _spoken(trial, fit, judge), _spoken(trial, held_out, judge)
    rows: list[dict[str, Any]] = []
    for site in sites:
        told = auc(x_fit[site], y_fit, x_out[site], y_out)
        rows.append({"site": site, "cross-validated AUC": validated(x_fit[site], y_fit), "held-out AUC": told})
    best = str(max(rows[1:], key=lambda row: _or_zero(row["cross-validated AUC"]))["site"])
    shuffled = [y_fit[i] for i in trial.random.sample(range(len(y_fit)), len(y_fit))]
    told = auc(x_fit[best], shuffled, x_out[best], y_out)
    rows.append({"site": f"{best}, shuffled labels", "cross-validated AUC": None, "held-out AUC": told})
    right = {
        "probe": _right(x_fit[best], y_fit, x_out[best], y_out),
        "embeddings": _right(x_fit["embed"], y_fit, x_out["embed"], y_out),
        "shuffled labels": _right(x_fit[best], shuffled, x_out[best], y_out),
    }
    chance = [float(label == (sum(y_fit) * 2 > len(y_fit))) for label in y_out]
    return trial.readout(
        "replies whose persona is foreseen",
        torch.tensor(chance, dtype=torch.float64),
        torch.tensor(right["probe"], dtype=torch.float64),
        {name: torch.tensor(values, dtype=torch.float64) for name, values in right.items() if name != "probe"},
        what=f"a probe of the last token of the prompt at {best} (nothing is changed)",
        figures=rows,
    )


def _spoken(trial: Trial, prompts: list[str], judge: Any) -> list[bool]:
    """Whether the greedy reply to each prompt is in the persona."""
    with Change().on(trial.lm) as changed:
        return [bool(judge(text)) for text in changed.generate(prompts, max_new_tokens=20, do_sample=False).texts]


def _or_zero(value: Any) -> float:
    return 0.0 if value is None else float(value)


def _right(x: Any, y: list[bool], x_out: Any, y_out: list[bool]) -> list[float]:
    return [float(found == label) for found, label in zip(probe(x, y).predict(x_out), y_out)]
