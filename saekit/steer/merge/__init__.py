"""Merging models that were fine-tuned from one base: task vectors, TIES, DARE, merging guided by sensitivities or activations.

Checkpoints are read and written tensor by tensor, so that memory holds a few tensors and not models. The methods `sens`, `aim`
and `acm` first run one model at a time on texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.steer.merge.job import Job, Piece, Step
    from saekit.steer.merge.merge import MergeSettings, merge_models, merged_delta
    from saekit.steer.merge.registry import MERGES, Merge
    from saekit.steer.merge.report import MergeReport

_HOMES = {
    "saekit.steer.merge.job": ("Job", "Piece", "Step"),
    "saekit.steer.merge.merge": ("MergeSettings", "merge_models", "merged_delta"),
    "saekit.steer.merge.registry": ("MERGES", "Merge"),
    "saekit.steer.merge.report": ("MergeReport",),
}

__all__ = ["MERGES", "Job", "Merge", "MergeReport", "MergeSettings", "Piece", "Step", "merge_models", "merged_delta"]

__getattr__ = attributes(__name__, {name: home for home, names in _HOMES.items() for name in names})
