"""Probes of single tokens: activations of the last token of rows, a logistic probe, and how well it tells two classes apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from saekit.improve.target import batches
from saekit.lm import LanguageModel


def sites_of(lm: LanguageModel) -> list[str]:
    """The embedding, and the residual stream after each block."""
    return ["embed", *(f"resid_post.{layer}" for layer in range(lm.n_layers))]


@torch.no_grad()
def last_tokens(lm: LanguageModel, rows: Sequence[Sequence[int]], sites: Sequence[str]) -> dict[str, Any]:
    """(B, width) float32 arrays by site: activations of the last token of each row."""
    import numpy as np

    found: dict[str, list[Any]] = {site: [None] * len(rows) for site in sites}
    for some, tokens_BT, mask_BT in batches(lm, rows, 32):
        run = lm.run(tokens_BT, attention_mask=mask_BT, read=list(sites), logits=None)
        for site in sites:
            acts_BTD = run[site]
            for i, (b, last) in enumerate(zip(some, (mask_BT.sum(1) - 1).tolist())):
                found[site][b] = acts_BTD[i, last].float().cpu().numpy()
    return {site: np.stack(each) for site, each in found.items()}


def probe(x: Any, y: Sequence[bool]) -> Any:
    """A logistic regression on standardised activations (B, width), with classes weighted equally."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000, class_weight="balanced")).fit(x, y)


def auc(x: Any, y: Sequence[bool], x_out: Any, y_out: Sequence[bool]) -> float | None:
    """Area under the ROC curve, on other examples, of a probe; None where these are of one class."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y_out, probe(x, y).decision_function(x_out))) if 0 < sum(y_out) < len(y_out) else None


def validated(x: Any, y: Sequence[bool]) -> float | None:
    """Area under the ROC curve by cross-validation; None where a class has fewer than two examples."""
    from sklearn.model_selection import cross_val_score

    folds = min(5, sum(y), len(y) - sum(y))
    return float(cross_val_score(probe(x, y), x, y, cv=folds, scoring="roc_auc").mean()) if folds > 1 else None
