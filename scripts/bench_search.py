"""Measure how well and how fast searches find the right features.

The right features of a concept are those that detect its tokens with an F1 of at least .5 (the laboratory) or .4 (stories), with
the threshold chosen on other documents. Concepts that no feature encodes are left out. For each signal alone and for all
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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from saekit.cli.output import table
from saekit.workspace import Workspace
from scripts.search_concepts import EVERYDAY, LABORATORY
from scripts.search_truth import Truth, examples, of_laboratory, of_stories, truth

DEEPEST = 100
"""Right features beyond this place are not found."""
SIGNALS: dict[str, dict[str, Any]] = {
    "plain text": {"by": ["label", "text", "fires_word"]},
    "promoted tokens": {"by": "promotes"},
    "meaning": {"by": "meaning"},
    "words near in meaning": {"by": ["near", "named"]},
    "all (the default)": {},
}
ENCODED = {"lab": 0.5, "stories": 0.4}


def measured(ranks: list[int | None]) -> dict[str, Any]:
    """MRR and other shares, from the ranks (from 1) of the first right feature; None: not found."""
    found = np.array([0.0 if rank is None else 1 / rank for rank in ranks])
    first, three = ([rank is not None and rank <= most for rank in ranks] for most in (1, 3))
    return {
        "MRR": round(float(found.mean()), 3),
        "first": round(float(np.mean(first)), 2),
        "in three": round(float(np.mean(three)), 2),
        "nothing": round(float(np.mean(found == 0)), 2),
        "concepts": len(ranks),
    }


def rank(hits: list[Any], right: set[int]) -> int | None:
    """Place of the first right feature, from 1."""
    return next((place for place, hit in enumerate(hits, 1) if hit.feature in right), None)


def by_name(ws: Workspace, address: str, known: Truth, queries: Mapping[str, str], least: float) -> list[dict[str, Any]]:
    """Measure searches by the names of concepts."""
    db, rows = ws.database(), []
    for name, options in SIGNALS.items():
        ranks = [
            rank(db.search(queries[concept], DEEPEST, dictionary=address, **options), known.right(concept, least))
            for concept in known.encoded(least)
        ]
        rows.append({"by name": name, **measured(ranks)})
    return rows


def by_example(ws: Workspace, address: str, known: Truth, least: float, n: int, seeds: list[int]) -> list[dict[str, Any]]:
    """Measure searches by n example texts, drawn once with each seed."""
    db, lm, sae = ws.database(), ws.lm, ws.sae(address)
    ranks: dict[str, list[int | None]] = {}
    for concept in known.encoded(least):
        for seed in seeds:
            drawn = examples(lm, known.labelled, concept, n, seed)
            no_marks: list[list[tuple[int, int]]] = [[] for _ in drawn.positives]
            ways: dict[str, Callable[[], list[Any]]] = {
                f"{n} texts": lambda d=drawn, s=no_marks: db.search_texts(lm, sae, d.positives, spans=s, k=DEEPEST),
                f"{n} texts and contrast": lambda d=drawn, s=no_marks: db.search_texts(
                    lm, sae, d.positives, d.negatives or None, spans=s, k=DEEPEST
                ),
                f"{n} marked texts": lambda d=drawn: db.search_texts(lm, sae, d.marked, k=DEEPEST),
                f"{n} marked texts and contrast": lambda d=drawn: db.search_texts(
                    lm, sae, d.marked, d.negatives or None, k=DEEPEST
                ),
            }
            for way, search in ways.items():
                ranks.setdefault(way, []).append(rank(search(), known.right(concept, least)))
    return [{"by example": way, **measured(found)} for way, found in ranks.items()]


def quality(kind: str, ws: Workspace, words: Mapping[str, str], data: Path | None, options: argparse.Namespace) -> dict[str, Any]:
    """Both measurements of one workspace."""
    address = str(ws.dictionaries.address(options.site, ""))
    lm, sae, least = ws.lm, ws.sae(address), ENCODED[kind]
    site = sae.cfg.site
    if kind == "lab":
        labelled, queries = of_laboratory(lm, sorted(words), options.documents), words
    else:
        labelled, queries = of_stories(lm, data or Path(str(ws.study.data)), words), {name: name for name in words}
    known = truth(lm, sae, site, labelled)
    tables = [by_name(ws, address, known, queries, least)]
    if options.seeds:
        tables.append(by_example(ws, address, known, least, options.examples, options.seeds))
    return {"workspace": kind, "named": len(words), "encoded": len(known.encoded(least)), "tables": tables}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", type=Path, metavar="WORKSPACE", help="of the model lab: `saekit fit lab` makes one")
    parser.add_argument("--stories", type=Path, metavar="WORKSPACE", help="of a model and corpus of stories (a jsonl file)")
    parser.add_argument("--data", type=Path, help="stories to measure on [default: the workspace's]")
    parser.add_argument("--words", type=Path, help="JSON: names of concepts -> words (stories) or queries (lab)")
    parser.add_argument("--site", help="needed if a workspace has several")
    parser.add_argument("--documents", type=int, default=1500, help="of the laboratory")
    parser.add_argument("--examples", type=int, default=5, metavar="N", help="texts of a concept")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1], help="of the example texts; none: no examples")
    parser.add_argument("--latency", type=int, nargs="*", default=[], metavar="FEATURES", help="sizes of synthetic databases")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    given = None if options.words is None else json.loads(options.words.read_text())
    results: dict[str, Any] = {}
    for kind, folder, words in (("lab", options.lab, LABORATORY), ("stories", options.stories, EVERYDAY)):
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
