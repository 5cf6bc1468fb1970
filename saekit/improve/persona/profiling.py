"""Profiling: what the persona of a reply will be, read from the prompt."""

from __future__ import annotations

from typing import Any

import torch

from saekit.improve.changed import Change
from saekit.improve.judges import judge_of
from saekit.improve.report import Report
from saekit.improve.target import batches
from saekit.improve.trial import Trial


def foresee(trial: Trial) -> Report:
    """Probe the last token of each prompt, layer by layer, for whether the reply will be in the persona.

    The layer is chosen by cross-validation on the prompts for fitting. The score of a held-out prompt is 1 where the probe is
    right. Controls: a probe of the embeddings, and a probe of shuffled labels (selectivity, Hewitt and Liang 2019).
    """
    judge = judge_of(trial.fit("pairs"))
    fit, held_out = trial.fit("prompts"), trial.held_out("prompts")
    sites = ["embed", *(f"resid_post.{layer}" for layer in range(trial.lm.n_layers))]
    x_fit, x_out = _read(trial, fit, sites), _read(trial, held_out, sites)
    y_fit, y_out = _spoken(trial, fit, judge), _spoken(trial, held_out, judge)
    rows: list[dict[str, Any]] = []
    for site in sites:
        auc = _auc(x_fit[site], y_fit, x_out[site], y_out)
        rows.append({"site": site, "cross-validated AUC": _validated(x_fit[site], y_fit), "held-out AUC": auc})
    best = str(max(rows[1:], key=lambda row: _or_zero(row["cross-validated AUC"]))["site"])
    shuffled = [y_fit[i] for i in trial.random.sample(range(len(y_fit)), len(y_fit))]
    auc = _auc(x_fit[best], shuffled, x_out[best], y_out)
    rows.append({"site": f"{best}, shuffled labels", "cross-validated AUC": None, "held-out AUC": auc})
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


@torch.no_grad()
def _read(trial: Trial, prompts: list[str], sites: list[str]) -> dict[str, Any]:
    """(B, width) activations of the last token of each prompt, by site."""
    rows = trial.lm.text.ids(prompts)
    found: dict[str, list[Any]] = {site: [None] * len(rows) for site in sites}
    for some, tokens_BT, mask_BT in batches(trial.lm, rows, 32):
        run = trial.lm.run(tokens_BT, attention_mask=mask_BT, read=sites, logits=None)
        for site in sites:
            acts_BTD = run[site]
            for b, last in zip(some, (mask_BT.sum(1) - 1).tolist()):
                found[site][b] = acts_BTD[some.index(b), last].float().cpu().numpy()
    return found


def _spoken(trial: Trial, prompts: list[str], judge: Any) -> list[bool]:
    """Whether the greedy reply to each prompt is in the persona."""
    with Change().on(trial.lm) as changed:
        return [bool(judge(text)) for text in changed.generate(prompts, max_new_tokens=20, do_sample=False).texts]


def _probe(x: Any, y: list[bool]) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000, class_weight="balanced")).fit(x, y)


def _or_zero(value: Any) -> float:
    return 0.0 if value is None else float(value)


def _auc(x: Any, y: list[bool], x_out: Any, y_out: list[bool]) -> float | None:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y_out, _probe(x, y).decision_function(x_out))) if 0 < sum(y_out) < len(y_out) else None


def _validated(x: Any, y: list[bool]) -> float | None:
    from sklearn.model_selection import cross_val_score

    folds = min(5, sum(y), len(y) - sum(y))
    return float(cross_val_score(_probe(x, y), x, y, cv=folds, scoring="roc_auc").mean()) if folds > 1 else None


def _right(x: Any, y: list[bool], x_out: Any, y_out: list[bool]) -> list[float]:
    return [float(found == label) for found, label in zip(_probe(x, y).predict(x_out), y_out)]
