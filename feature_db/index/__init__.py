"""Indexing: one pass over the activations that computes the rows of all features."""
