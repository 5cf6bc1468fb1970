"""Measures of training: the local learning coefficient, in-context learning over checkpoints, and pathways of experts."""
