"""AbsTopK (arXiv 2510.00404): the k latents of a token with the largest magnitudes reconstruct it, with their signs.

    h = W_enc (x - b_dec) + b_enc,   f_j = h_j where |h_j| is among the k largest, else 0,   x_hat = W_dec^T f + b_dec
    L = mean_b ||x - x_hat||^2 / Var(x) + AuxK

with unit decoder rows. A latent can fire in both directions, so that two opposite concepts (male and female) need one latent
instead of two. Everything else is as in :mod:`trainers.objectives.topk`; AuxK chooses dead latents by magnitude, too.

There is no file format for AbsTopK transcoders and crosscoders.
"""

from __future__ import annotations

from trainers.objectives.topk import TopK


class AbsTopK(TopK):
    """The objective of AbsTopK SAEs; formulas in the docstring of the module."""

    signed = True
