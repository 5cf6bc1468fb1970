"""Single tokens sent into a layer: what heads and neurons read from a token's embedding, computed by the model's own modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from feature_db.index.projection import countable
from saekit.lm.run.edits import Edit
from saekit.names.site import Site

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_ROWS = 2048
"""Tokens that are run at once."""


def source_tokens(lm: LanguageModel, most: int | None = None) -> Tensor:
    """(N,) ids of ordinary entries of the vocabulary: all of them, or `most` evenly spaced ones."""
    ids = countable(lm).nonzero()[:, 0]
    if most is None or len(ids) <= most:
        return ids
    return ids[torch.linspace(0, len(ids) - 1, most, dtype=torch.float64).round().long()]


@torch.no_grad()
def embeddings(lm: LanguageModel, ids_N: Tensor) -> Tensor:
    """(N, d_model) what single tokens put into the residual stream before the first layer.

    A learned position embedding is left out. It is the same for all tokens, which is how it is recognised.
    """
    embed, first = Site("embed"), Site("resid_pre", 0)
    found: list[tuple[Tensor, Tensor]] = []
    for part in ids_N.split(_ROWS):
        run = lm.run(part[:, None], read=[embed, first], logits=None)
        found.append((run[embed][:, 0], run[first][:, 0]))
    embed_NE, first_ND = (torch.cat(each) for each in zip(*found))
    if embed_NE.shape == first_ND.shape:
        rest_ND = (first_ND - embed_NE).float()
        if float((rest_ND - rest_ND[:1]).abs().max()) <= 1e-5 * float(first_ND.float().abs().max()):
            return embed_NE
    return first_ND


@torch.no_grad()
def read_alone(
    lm: LanguageModel, layer: int, resid_ND: Tensor, sites: Sequence[Site], edits: Sequence[Edit] = ()
) -> list[Tensor]:
    """Activations (N, ...) at sites of a layer when it receives each residual vector alone, as a text of one token.

    The token attends to itself only, so that `heads` are the values of the token.
    """
    recording = lm.record([[int(source_tokens(lm, 1)[0])]])
    parts: list[list[Tensor]] = [[] for _ in sites]
    for some_nD in resid_ND.split(_ROWS):
        run = lm.run(start_at=(recording, layer, some_nD[:, None]), read=sites, edits=edits, logits=None)
        for found, site in zip(parts, sites):
            found.append(run[site][:, 0])
    return [torch.cat(each) for each in parts]
