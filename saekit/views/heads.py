"""Attention heads: their scores by the locating methods, and where they look on a text."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError, SaekitError, UnknownRef
from saekit.names.ref import Ref
from saekit.workspace import rankings as kept

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.workspace.workspace import Workspace

MOST_TOKENS = 64
"""Tokens of a text whose patterns are drawn."""
_PAIRS = 12
MEANINGS = {
    "induction": "attention to the token after an earlier occurrence of the same token",
    "previous_token": "attention to the token before",
    "duplicate_token": "attention to earlier occurrences of the same token",
    "copy": "share of tokens whose strongest key is an earlier token equal to the next one",
    "pattern_entropy": "entropy of the attention, nats",
}


def heads_view(ws: Workspace, lm: LanguageModel, ids: Sequence[int] = (), sort: str = "") -> dict[str, Any]:
    """All heads of a model with their scores.

    Args:
        ids: a text as token ids, on which the scores are measured; empty: random tokens given twice, where induction shows.
        sort: a column, in descending order; "": by layer and head.

    Returns:
        columns: rows of `name` and `meaning`, or `ranking` for kept rankings of heads. rows: `ref`, `layer`, `head`, and `scores`
        by column, None where there is none. layers: heads of each.

    Raises:
        ConfigError: the model has no attention patterns, the text is too long, or there is no such column.
    """
    from saekit.locate.magnitude.heads import head_scores

    _check(ids)
    found = head_scores(lm, [list(ids)] if ids else None, progress=False)
    columns: list[dict[str, Any]] = [
        {"name": name, "meaning": text, "ranking": False} for name, text in MEANINGS.items() if name in found
    ]
    refs = next(iter(found.values()))[0]
    scores: dict[str, dict[str, float]] = {
        each["name"]: dict(zip(map(str, found[each["name"]][0]), found[each["name"]][1].mean(1).tolist())) for each in columns
    }
    for name, own in _rankings(ws).items():
        columns.append({"name": name, "meaning": "kept ranking", "ranking": True})
        scores[name] = own
    if sort and sort not in scores:
        raise ConfigError(f"There is no column {sort!r:.80}.", f"Columns: {', '.join(scores)}.")
    rows: list[dict[str, Any]] = [
        {
            "ref": str(ref),
            "layer": ref.layer,
            "head": ref.unit,
            "scores": {name: _finite(own.get(str(ref))) for name, own in scores.items()},
        }
        for ref in refs
    ]
    if sort:
        rows.sort(key=lambda row: -(row["scores"][sort] if row["scores"][sort] is not None else float("-inf")))
    counts = [sum(ref.layer == layer for ref in refs) for layer in sorted({ref.layer or 0 for ref in refs})]
    return {"columns": columns, "rows": rows, "layers": counts}


def pattern_view(lm: LanguageModel, ids: Sequence[int], head: str) -> dict[str, Any]:
    """Where one head looks on a text.

    Args:
        head: "3.5" or "head:3.5".

    Returns:
        head; tokens: texts; pattern: `[query][key]`; pairs: the strongest, `query`, `key` and `value`, without attention to the
        first token, where many heads rest.

    Raises:
        UnknownRef: there is no such head.
        ConfigError: the text is too long.
    """
    _check(ids)
    ref = Ref.parse(head if head.startswith("head:") else f"head:{head}")
    site = lm.site(f"pattern.{ref.layer}")
    if ref.kind != "head" or not 0 <= ref.unit < (count := lm.size("n_heads", ref.layer)):
        raise UnknownRef(f"There is no head {head!r:.40}.", f"Layer {ref.layer} has {count} heads, from {ref.layer}.0 on.")
    pattern_TT = lm.run([list(ids)], read=[site], logits=None)[site][0, ref.unit].float()
    tokens = lm.text.token_strings(ids)
    flat = pattern_TT[:, 1:].flatten() if len(ids) > 1 else pattern_TT.flatten()[:0]
    width = max(len(ids) - 1, 1)
    best = flat.topk(min(_PAIRS, len(flat)))
    pairs = [
        {
            "query": tokens[at // width],
            "query_at": at // width,
            "key": tokens[at % width + 1],
            "key_at": at % width + 1,
            "value": value,
        }
        for value, at in zip(best.values.tolist(), best.indices.tolist())
        if value > 0
    ]
    return {"head": str(ref), "tokens": tokens, "pattern": pattern_TT.tolist(), "pairs": pairs}


def _check(ids: Sequence[int]) -> None:
    if len(ids) > MOST_TOKENS:
        raise ConfigError(
            f"The text has {len(ids):,} tokens; patterns are drawn for up to {MOST_TOKENS}.", "Give a shorter text."
        )


def _rankings(ws: Workspace) -> dict[str, dict[str, float]]:
    """Scores by head of the kept rankings that rank heads alone."""
    found = {}
    for name in kept.names(ws):
        try:
            ranking = ws.ranking(name)
        except SaekitError:  # the page of rankings says why
            continue
        if len(ranking) and all(isinstance(ref, Ref) and ref.kind == "head" for ref in ranking):
            found[name] = {str(ref): ranking[ref] for ref in ranking}
    return found


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
