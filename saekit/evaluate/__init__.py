"""Measures: how good a dictionary is, and what an intervention does to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.lazy import attributes

if TYPE_CHECKING:
    from saekit.evaluate.steering.side_effects import Perplexity, distinct_n, kl, ngram_entropy, perplexity

__all__ = ["Perplexity", "distinct_n", "kl", "ngram_entropy", "perplexity"]

# Loaded when first used: the command line reads the registry of evaluations, and must not wait for torch.
__getattr__ = attributes(__name__, dict.fromkeys(__all__, "saekit.evaluate.steering.side_effects"))
