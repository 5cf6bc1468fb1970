"""Measure how well and how fast searches find the right features.

The right features of a concept are those that detect its tokens (the laboratory) or words (stories) with an F1 of at least .5,
with the threshold chosen on other documents. Concepts that no feature encodes are left out. For each signal alone and for all
together: the mean reciprocal rank (MRR) of the first right feature, how often it is first and among the first three, and for how
many concepts nothing right is among the first 100.

Example:
    python -m scripts.bench_search --lab lab-resid_post.3
    python -m scripts.bench_search --stories stories-ws --words my_words.json
    python -m scripts.bench_search --latency 65536 262144
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from saekit.cli.output import table
from saekit.evaluate.concepts.results import ENCODED
from saekit.workspace import Workspace
from scripts.search_concepts import EVERYDAY, HELD_APART, LABORATORY
from scripts.search_truth import Truth, examples, of_laboratory, of_stories, truth

DEEPEST = 100
"""Right features beyond this place are not found."""
SIGNALS: dict[str, dict[str, Any]] = {
    "plain text (labels, contexts, words)": {"by": ["label", "text", "fires_word"]},
    "logits (promoted tokens)": {"by": "promotes"},
    "meaning alone": {"by": "meaning"},
    "words near in meaning": {"by": "near"},
    "words and classes by name": {"by": ["named", "classes"]},
    "fused (the default)": {},
}


def measured(ranks: list[int | None]) -> dict[str, Any]:
    """MRR and other shares, from the ranks (from 1) of the first right feature; None: not found."""
    found = np.array([0.0 if rank is None else 1 / rank for rank in ranks])
    first, three = ([rank is not None and rank <= most for rank in ranks] for most in (1, 3))
    return {
        "MRR": round(float(found.mean()), 3),
        "first": round(float(np.mean(first)), 2),
        "in three": round(float(np.mean(three)), 2),
        "nothing": round(float(np.mean(found == 0)), 2),
        "n": len(ranks),
    }


def rank(hits: list[Any], right: set[tuple[str, int]]) -> int | None:
    """Place of the first right feature, from 1."""
    return next((place for place, hit in enumerate(hits, 1) if (hit.dictionary, hit.feature) in right), None)


@dataclass(frozen=True)
class Known:
    """The right features of concepts in one or more dictionaries of a workspace."""

    truths: dict[str, Truth]
    """By the address of the dictionary."""
    least: float
    """F1 from which a feature is right."""

    def encoded(self) -> list[str]:
        """Concepts with a right feature in any of the dictionaries."""
        return sorted({name for truth in self.truths.values() for name in truth.encoded(self.least)})

    def right(self, name: str) -> set[tuple[str, int]]:
        """The right features: dictionary and number."""
        return {(each, f) for each, truth in self.truths.items() for f in truth.right(name, self.least)}

    def best(self, name: str) -> str:
        """The dictionary with the feature that detects a concept best."""
        return max(self.truths, key=lambda each: float(self.truths[each].f1_FC[:, self.truths[each].names.index(name)].max()))


def parts(names: Sequence[str]) -> dict[str, list[str]]:
    """All concepts, those that weights and rules were chosen on, and those held apart; two halves where none was held apart."""
    apart = [name for name in names if name in HELD_APART]
    if apart:
        return {"all": list(names), "chosen on": [name for name in names if name not in apart], "held apart": apart}
    first = [name for name in names if zlib.crc32(name.encode()) % 2 == 0]
    return {"all": list(names), "one half": first, "the other": [name for name in names if name not in first]}


def by_name(ws: Workspace, known: Known, queries: Mapping[str, str]) -> list[dict[str, Any]]:
    """Measure searches by the names of concepts."""
    db, rows = ws.database(), []
    alone = next(iter(known.truths)) if len(known.truths) == 1 else None
    for name, options in SIGNALS.items():
        ranks = {
            concept: rank(db.search(queries[concept], DEEPEST, dictionary=alone, **options), known.right(concept))
            for concept in known.encoded()
        }
        for part, concepts in parts(list(ranks)).items() if not options else [("all", list(ranks))]:
            rows.append({"by name": name, "concepts": part, **measured([ranks[concept] for concept in concepts])})
    return rows


def by_example(ws: Workspace, known: Known, n: int, seeds: list[int]) -> list[dict[str, Any]]:
    """Measure searches by n example texts, drawn once with each seed, each in the best dictionary for its concept."""
    db, lm = ws.database(), ws.lm
    ranks: dict[str, list[int | None]] = {}
    for concept in known.encoded():
        address = known.best(concept)
        search = partial(db.search_texts, lm, ws.sae(address), k=DEEPEST)
        for seed in seeds:
            drawn = examples(lm, known.truths[address].labelled, concept, n, seed)
            no_marks: list[list[tuple[int, int]]] = [[] for _ in drawn.positives]
            contrast = drawn.negatives or None
            found = {
                f"{n} texts": search(drawn.positives, spans=no_marks),
                f"{n} texts and contrast": search(drawn.positives, contrast, spans=no_marks),
                f"{n} marked texts": search(drawn.marked),
                f"{n} marked texts and contrast": search(drawn.marked, contrast),
            }
            for way, hits in found.items():
                ranks.setdefault(way, []).append(rank(hits, known.right(concept)))
    return [{"by example": way, **measured(places)} for way, places in ranks.items()]


def quality(kind: str, ws: Workspace, words: Mapping[str, str], data: Path | None, options: argparse.Namespace) -> dict[str, Any]:
    """Both measurements of one workspace."""
    sites = options.site or [None]
    every = [each.dictionary for each in ws.database().saes()]
    addresses = every if not options.site else [str(ws.dictionaries.address(site, "")) for site in sites]
    if kind == "lab":
        labelled, queries = of_laboratory(ws.lm, sorted(words), options.documents), words
    else:
        labelled, queries = of_stories(ws.lm, data or Path(str(ws.study.data)), words), {name: name for name in words}
    truths = {address: truth(ws.lm, ws.sae(address), ws.sae(address).cfg.site, labelled) for address in addresses}
    known = Known(truths, ENCODED)
    tables = [by_name(ws, known, queries)]
    if options.seeds:
        tables.append(by_example(ws, known, options.examples, options.seeds))
    return {"workspace": kind, "dictionaries": addresses, "named": len(words), "encoded": len(known.encoded()), "tables": tables}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", type=Path, metavar="WORKSPACE", help="of the model lab: `saekit fit lab` makes one")
    parser.add_argument("--stories", type=Path, metavar="WORKSPACE", help="of a model and corpus of stories (a jsonl file)")
    parser.add_argument("--data", type=Path, help="stories to measure on [default: the workspace's]")
    parser.add_argument("--words", type=Path, help="JSON: names of concepts -> words (stories) or queries (lab)")
    parser.add_argument("--site", nargs="*", help="dictionaries of these sites [default: all of the workspace]")
    parser.add_argument("--documents", type=int, default=1500, help="of the laboratory")
    parser.add_argument("--examples", type=int, default=5, metavar="N", help="texts of a concept")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1], help="of the example texts; none: no examples")
    parser.add_argument("--latency", type=int, nargs="*", default=[], metavar="FEATURES", help="sizes of synthetic databases")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    given = None if options.words is None else json.loads(options.words.read_text())
    results: dict[str, Any] = {}
    for kind, folder, words in (("lab", options.lab, LABORATORY), ("stories", options.stories, EVERYDAY | HELD_APART)):
        if folder is not None:
            results[kind] = quality(kind, Workspace.open(folder), given or words, options.data, options)
    if options.latency:
        from scripts.search_latency import latency

        results["latency"] = [latency(n) for n in options.latency]
    if options.json:
        print(json.dumps(results, indent=1))
        return
    for kind in ("lab", "stories"):
        if kind in results:
            result = results[kind]
            for rows in result["tables"]:
                table(rows, title=f"{kind}: {result['encoded']} of {result['named']} concepts are encoded")
    if "latency" in results:
        table(results["latency"], title="p50 and p95 in ms")


if __name__ == "__main__":
    main()
