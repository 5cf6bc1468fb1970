"""Measures of what an intervention does to a model."""

from saekit.evaluate.steering.side_effects import Perplexity, distinct_n, kl, ngram_entropy, perplexity

__all__ = ["Perplexity", "distinct_n", "kl", "ngram_entropy", "perplexity"]
