"""Pathways of tokens through the experts of a mixture: similarity between tokens, and consistency between checkpoints.

Source: Li et al. 2025, "Where to find grokking in LLM pretraining?" (arXiv 2506.21551): a pathway is the sequence, over layers,
of the experts that a token is routed to; pathways grow alike and consistent while a model learns to generalise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Pathway = tuple[tuple[int, ...], ...]
"""The sorted experts of a token by layer."""


def pathways(router_LNE: Sequence[Tensor], k: int) -> list[Pathway]:
    """The pathway of each of N tokens: the k experts of the largest router logits of each layer."""
    chosen_LNK = [logits_NE.topk(k, dim=-1).indices.sort(-1).values.tolist() for logits_NE in router_LNE]
    return [tuple(tuple(layer[n]) for layer in chosen_LNK) for n in range(len(chosen_LNK[0]))]


def edit_distance(one: Pathway, other: Pathway) -> int:
    """Levenshtein distance of two pathways, whose letters are the sets of experts of the layers."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def distance_between_tokens(paths: Sequence[Pathway], pairs: int = 2000, seed: int = 0) -> float:
    """Mean edit distance of random pairs of tokens, as a share of the number of layers."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(paths), (pairs, 2), generator=generator).tolist()
    return sum(edit_distance(paths[a], paths[b]) / len(paths[a]) for a, b in drawn) / pairs


def consistency(before: Sequence[Pathway], after: Sequence[Pathway]) -> float:
    """1 - mean edit distance, as a share of the layers, of each token's pathways at two checkpoints: 1 where all are the same."""
    return 1 - sum(edit_distance(a, b) / len(a) for a, b in zip(before, after, strict=True)) / len(before)


def router_entropy(router_LNE: Sequence[Tensor]) -> list[float]:
    """Mean entropy in nats of the router's probabilities, by layer."""
    return [float(torch.special.entr(logits_NE.double().softmax(-1)).sum(-1).mean()) for logits_NE in router_LNE]
