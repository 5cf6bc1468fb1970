"""The measures of an evaluation for printing: name, value and explanation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from saekit.evaluate.dictionary.cross_entropy import DESCRIBED, baseline_of


class Measure(NamedTuple):
    """One measure."""

    measure: str
    value: str
    note: str


def measures(facts: Mapping[str, Any]) -> list[Measure]:
    """The measures in a result of :func:`saekit.evaluate.dictionary.quality.quality`. Missing ones are skipped.

    Earlier versions also kept an FVU "in training" of dictionaries that were trained elsewhere; it is skipped, too.
    """
    known = facts.keys() - ({"fvu_train"} if facts.get("trained_elsewhere") else set())
    return [Measure(name, form.format(facts[key]), note(facts)) for key, name, form, note in _MEASURES if key in known]


def _where(facts: Mapping[str, Any]) -> str:
    held = int(facts["heldout_tokens"])
    kind = "documents" if facts.get("trained_elsewhere") else "training documents"
    return f"{held:,} held-out tokens" if held else f"{kind}: too few to hold any out"


def _cross_entropy(facts: Mapping[str, Any]) -> str:
    name, base = baseline_of(facts)
    return f"nats per token: {facts['ce']:.3f} as it is, {facts['ce_spliced']:.3f} spliced in, {base:.3f} with {DESCRIBED[name]}"


_MEASURES: list[tuple[str, str, str, Callable[[Mapping[str, Any]], str]]] = [
    ("fvu", "variance unexplained (FVU)", "{:.4f}", lambda facts: f"all of {_where(facts)}"),
    ("fvu_trimmed", "FVU, trimmed", "{:.4f}", lambda facts: "without the 1 % of the tokens of largest norm"),
    ("fvu_train", "FVU in training", "{:.4f}", lambda facts: "training documents"),
    ("l0", "features active (L0)", "{:.4g}", lambda facts: "per token"),
    ("dead_fraction", "dead features", "{:.2%}", lambda facts: f"fire on none of {facts['density_tokens']:,} tokens"),
    ("ce_recovered", "cross-entropy recovered", "{:.2%}", _cross_entropy),
    ("kl", "KL when spliced in", "{:.4f}", lambda facts: "nats per token"),
    ("cosine", "cosine similarity", "{:.4f}", lambda facts: "of activation and reconstruction"),
    ("shrinkage", "shrinkage", "{:.4f}", lambda facts: "1: none; below 1 the reconstruction is too small"),
    (
        "dense_fraction",
        "dense features",
        "{:.2%}",
        lambda facts: f"fire on more than 10 % of {facts['density_tokens']:,} tokens",
    ),
]
