"""Runs a query through the model and its dictionary."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.sae import SAE


def fired_by_query(lm: LanguageModel, sae: SAE, site: str, query: str) -> list[tuple[int, float]]:
    """Features that fire on the query's own tokens and their largest activation there; of AbsTopK, the largest magnitude."""
    tokens_BT, mask_BT = lm.encode([query])
    with torch.no_grad():
        acts = lm.run(tokens_BT, attention_mask=mask_BT, read=[site], logits=None)[site][0]
        counts = lm.ordinary(tokens_BT[0], mask_BT[0])
        if not counts.any():  # a query of one token, from a tokenizer without BOS
            counts = lm.ordinary(tokens_BT[0], mask_BT[0], keep_first=True)
        code = sae.encode_sparse(acts[counts.to(acts.device)])
    largest: dict[int, float] = defaultdict(float)
    strengths = code.values.abs() if sae.cfg.activation_function.signed else code.values
    for values, features in zip(strengths.tolist(), code.indices.tolist()):
        for value, feature in zip(values, features):
            if value > 0:
                largest[feature] = max(largest[feature], value)
    return sorted(largest.items())
