"""Stitching: what affine maps between two models lose, and whether carried steering vectors point where fitted ones do.

Pairs: the laboratory model and a specialist that was fine-tuned from it, at one site, and two layers of the laboratory model.
Maps are fitted on 400 documents of the corpus and measured on 100 others. The vectors are mean differences of contrasts.
"""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from saekit import lab
from saekit.evaluate.steering.stitched import measure_stitch
from saekit.lm import LanguageModel
from saekit.steer.stitch import End, fit_stitch, transfer_vector
from saekit.steer.vectors import fit_vector
from scripts.steer_merging import STEPS, specialise

SKILL = "multiple_choice"
CONTRASTS = ("language_french", "language_german")
SITES = (("resid_post.3", "resid_post.3"), ("resid_post.1", "resid_post.3"))


def section(quick: bool) -> list[dict[str, Any]]:
    """One row for each pair of ends."""
    with tempfile.TemporaryDirectory() as place:
        specialise(SKILL, Path(place) / SKILL, 10 if quick else STEPS)
        tuned = LanguageModel.load(Path(place) / SKILL, bos="yes")
        return rows_of(LanguageModel.load("lab"), tuned, 100 if quick else 500)


def rows_of(base: LanguageModel, tuned: LanguageModel, texts: int) -> list[dict[str, Any]]:
    """Fit, measure, and carry vectors."""
    documents = [each.text for each in islice(lab.documents(seed=31), texts)]
    heldout, fitted = documents[::5], [text for number, text in enumerate(documents) if number % 5]
    found = []
    for name, target_lm, sites in (("lab -> specialist", tuned, SITES[0]), ("lab -> lab", base, SITES[1])):
        source, target = End(base, sites[0]), End(target_lm, sites[1])
        stitch = fit_stitch(source, target, fitted)
        row: dict[str, Any] = {"pair": name, "sites": " -> ".join(sites), **measure_stitch(stitch, source, target, heldout)}
        for contrast in CONTRASTS:
            data = lab.contrast(contrast, 60)
            own = fit_vector(base, data, sites[0])
            there = fit_vector(target_lm, data, sites[1])
            carried = transfer_vector(stitch, own)
            row[f"cosine {contrast}"] = _cosine(carried.values, there.values)
            row[f"unmapped {contrast}"] = _cosine(own.values, there.values)
        found.append(row)
    return found


def _cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.cosine_similarity(one, other, dim=0))


def show(rows: list[dict[str, Any]]) -> None:
    """Print a paragraph for each pair."""
    for row in rows:
        print(f"{row['pair']}, {row['sites']}: FVU {row['fvu_up']:.3f} there, {row['fvu_down']:.3f} back", end="; ")
        print(f"cross-entropy {row['ce']:.3f}, stitched {row['ce_stitched']:.3f}, mean {row['ce_mean']:.3f}", end=": ")
        print(f"{row['ce_recovered']:.1%} recovered")
        for contrast in CONTRASTS:
            values = row[f"cosine {contrast}"], row[f"unmapped {contrast}"]
            print("  {}: cosine of the carried vector with the fitted one {:.3f}, unmapped {:.3f}".format(contrast, *values))
