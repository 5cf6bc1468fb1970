"""What a head does to tokens: the pairs of its OV and QK circuits (Elhage et al. 2021), and how much it copies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from feature_db.index.projection import countable, logit_effects
from saekit.errors import UnknownSite
from saekit.locate.vocabulary.alone import embeddings, read_alone, source_tokens
from saekit.locate.vocabulary.tokens import token_names, unit_rms
from saekit.names.ref import Ref
from saekit.names.site import Site
from saekit.objects import space_of

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

TOKENS = 2000
"""Tokens of the vocabulary that are sent through a head."""


class TokenPair(NamedTuple):
    """Two tokens with the number that the head gives them."""

    source: str
    target: str
    value: float


@dataclass(frozen=True)
class Copying:
    """How much the OV circuit of a head writes the token that it reads.

    Attributes:
        share: share of the tokens that are themselves among the `top` tokens that the head writes for them (Wang et al. 2022).
        eigenvalues: sum of the eigenvalues of the token-to-token matrix over the sum of their sizes, from -1 to 1 (Elhage et al.
            2021): 1 copies, -1 does the opposite.
        top: how many tokens count for `share`.
    """

    share: float
    eigenvalues: float
    top: int


@torch.no_grad()
def ov_pairs(lm: LanguageModel, head: Ref | str, *, top: int = 20, tokens: int | None = TOKENS) -> list[TokenPair]:
    """The pairs of an attended token (source) and a token that the head then writes (target), with the largest logits.

    Each token's embedding enters the head's layer alone. The head's output, without what it writes for an empty residual stream,
    goes through the final norm and the unembedding, whose biases are taken off.

    Args:
        lm: the model.
        head: a head.
        top: pairs to return.
        tokens: sources: evenly spaced entries of the vocabulary; None: all.

    Raises:
        UnknownRef: the model has no such head.
    """
    ref = Ref.parse(head)
    ids_N = source_tokens(lm, tokens)
    allowed_V, best = countable(lm), _Best(top)
    start = 0
    for logits_nV in logit_effects(lm, unit_rms(_written(lm, ref, ids_N))):
        best.add(logits_nV.masked_fill(~allowed_V, -torch.inf), ids_N[start : start + len(logits_nV)], None)
        start += len(logits_nV)
    return best.pairs(lm)


@torch.no_grad()
def qk_pairs(lm: LanguageModel, head: Ref | str, *, top: int = 20, tokens: int | None = TOKENS) -> list[TokenPair]:
    """The pairs of a query's token (source) and a key's token (target) with the largest products q . k.

    q and k are those of the embeddings alone, before rotation, as for a query and a key at the same place. The model divides the
    product by the root of the head's width, or as it is configured; the order of pairs is the same.

    Args:
        lm, head, top: as for :func:`ov_pairs`.
        tokens: queries and keys: evenly spaced entries of the vocabulary; None: all.

    Raises:
        UnknownRef: the model has no such head.
        UnknownSite: its queries and keys cannot be read.
    """
    ref = Ref.parse(head)
    space_of(lm, ref)
    assert ref.layer is not None
    ids_N = source_tokens(lm, tokens)
    sites = [lm.site(Site(kind, ref.layer)) for kind in ("q", "k")]
    q_NHd, k_NKd = read_alone(lm, ref.layer, embeddings(lm, ids_N), sites)
    q_Nd, k_Nd = q_NHd[:, ref.unit].float(), k_NKd[:, ref.unit // (q_NHd.shape[1] // k_NKd.shape[1])].float()
    best = _Best(top)
    for start in range(0, len(ids_N), 512):
        best.add((q_Nd[start : start + 512] @ k_Nd.T).cpu(), ids_N[start : start + 512], ids_N)
    return best.pairs(lm)


@torch.no_grad()
def copying(lm: LanguageModel, head: Ref | str, *, top: int = 5, tokens: int | None = TOKENS) -> Copying:
    """How much a head copies the token that it attends to; see :class:`Copying`.

    Args:
        lm, head, tokens: as for :func:`ov_pairs`.
        top: a token counts as copied if it is among the `top` tokens that the head writes.

    Raises:
        UnknownRef: the model has no such head.
    """
    ref, ids_N = Ref.parse(head), source_tokens(lm, tokens)
    return copying_of(lm, *_values(lm, ref, ids_N), ids_N, top)


def copying_of(lm: LanguageModel, z_Nd: Tensor, W_dD: Tensor, ids_N: Tensor, top: int) -> Copying:
    """As :func:`copying`, from the head's outputs z (N, d_head) for the tokens and its output projection (d_head, d_model)."""
    allowed_V, copied, start = countable(lm), 0, 0
    for logits_nV in logit_effects(lm, unit_rms(z_Nd @ W_dD)):
        logits_nV = logits_nV.masked_fill(~allowed_V, -torch.inf)
        own_n1 = logits_nV.gather(1, ids_N[start : start + len(logits_nV), None])
        copied += int(((logits_nV > own_n1).sum(1) < top).sum())
        start += len(logits_nV)
    # The nonzero eigenvalues of the matrix from tokens to tokens, z W_O U, are those of the small matrix W_O U z.
    small_dd = _linear_logits(lm, W_dD)[:, ids_N.to(W_dD.device)].double() @ z_Nd.double()
    values = torch.linalg.eigvals(small_dd)
    total = float(values.abs().sum())
    return Copying(copied / len(ids_N), float(values.real.sum()) / total if total > 0 else 0.0, top)


def head_tables(lm: LanguageModel, head: Ref, top: int) -> dict[str, Any]:
    """What :func:`ov_pairs`, :func:`qk_pairs` and :func:`copying` find, as plain data. "qk" may be missing."""
    score = copying(lm, head)
    found: dict[str, Any] = {
        "copying": score.share,
        "copying_eigenvalues": score.eigenvalues,
        "ov": [pair._asdict() for pair in ov_pairs(lm, head, top=top)],
    }
    try:
        found["qk"] = [pair._asdict() for pair in qk_pairs(lm, head, top=top)]
    except UnknownSite:
        return found
    return found


def _written(lm: LanguageModel, ref: Ref, ids_N: Tensor) -> Tensor:
    z_Nd, W_dD = _values(lm, ref, ids_N)
    return z_Nd @ W_dD


def _values(lm: LanguageModel, ref: Ref, ids_N: Tensor) -> tuple[Tensor, Tensor]:
    """(N, d_head) the head's output for each token alone, without biases, and its (d_head, d_model) output projection."""
    space = space_of(lm, ref)
    W_dD = space.directions([ref.unit])[0]
    return heads_alone(lm, space.site, ids_N)[:, ref.unit].to(W_dD), W_dD


@torch.no_grad()
def heads_alone(lm: LanguageModel, site: Site, ids_N: Tensor) -> Tensor:
    """(N, heads, d_head) the outputs of a layer's heads for the embedding of each token alone.

    What they write for an empty residual stream, which comes from biases, is taken off.

    Args:
        site: the layer's `heads`.
    """
    assert site.layer is not None
    embedded_ND = embeddings(lm, ids_N)
    with_empty = torch.cat([embedded_ND, torch.zeros_like(embedded_ND[:1])])
    (heads_NHd,) = read_alone(lm, site.layer, with_empty, [site])
    return heads_NHd[:-1] - heads_NHd[-1:]


def _linear_logits(lm: LanguageModel, resid_ND: Tensor) -> Tensor:
    """(N, V) the linear part of the unembedding: its derivative at the origin, where norms multiply by a constant."""
    weight = lm.W_U
    x_ND = resid_ND.to(weight.device, weight.dtype)
    effects: Tensor = torch.func.jvp(lm.unembed, (torch.zeros_like(x_ND),), (x_ND,))[1]
    return effects.float().to(resid_ND.device)


class _Best:
    """The largest entries of a matrix that comes in parts of its rows."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._values, self._sources, self._targets = torch.empty(0), torch.empty(0).long(), torch.empty(0).long()

    def add(self, values_nM: Tensor, sources_n: Tensor, targets_M: Tensor | None) -> None:
        """Take in rows; columns are ids themselves where no targets are given."""
        flat = values_nM.flatten()
        best, where = flat.topk(min(self._top, len(flat)))
        columns = where % values_nM.shape[1]
        values = torch.cat([self._values, best.float()])
        sources = torch.cat([self._sources, sources_n[where // values_nM.shape[1]]])
        targets = torch.cat([self._targets, columns if targets_M is None else targets_M[columns]])
        self._values, order = values.topk(min(self._top, len(values)))
        self._sources, self._targets = sources[order], targets[order]

    def pairs(self, lm: LanguageModel) -> list[TokenPair]:
        """The pairs, the largest first."""
        sources, targets = (token_names(lm, ids) for ids in (self._sources, self._targets))
        pairs = map(TokenPair, sources, targets, self._values.tolist())
        return [pair for pair in pairs if math.isfinite(pair.value)]
