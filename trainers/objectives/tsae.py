"""T-SAE (arXiv 2511.05541): a Matryoshka SAE whose first latents change slowly from token to token.

Every token comes with the token before it in its document. The first `high_level` of the latents are the high-level ones. Both
levels reconstruct, as in :mod:`trainers.objectives.matryoshka` (BatchTopK with levels of the high-level latents and of all), and
the high-level codes z of neighbouring tokens are to be more similar than those of other tokens of the batch (InfoNCE):

    s_ij = cos(z_i, z'_j) / tau,   z of token i, z' of the token before token j
    L = L_Matryoshka + alpha / (2 ln B) sum_b -1/B [ln softmax_j(s_b.)_b + ln softmax_j(s_.b)_b]

with tau = 0.1. The division by ln B makes the contrastive term 1 for a random guess, whatever the batch. Tokens and the tokens
before them are reconstructed alike: the loss is their mean.

Codes stay sparse: similarities are sums over entries, for a block of tokens at a time. After training, one threshold replaces the
selection, as in BatchTopK; the file is that of a JumpReLU SAE.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from saekit.sae.code import Code
from trainers.objectives.base import Now, Outcome
from trainers.objectives.matryoshka import Matryoshka
from trainers.step.parameters import Parameters
from trainers.step.sparse_gradient import SparseGradient

_TEMPERATURE = 0.1  # tau
_BLOCK = 1 << 22  # numbers of dense high-level codes at a time


class TSAE(Matryoshka):
    """The objective of T-SAEs; formulas in the docstring of the module. Rows come in pairs (B, 2, D): a token, and the one before
    it."""

    def shares(self) -> tuple[float, ...]:
        return self.config.high_level, 1 - self.config.high_level

    def loss(self, p: Parameters, x_BD: Tensor, y_BE: Tensor, now: Now) -> Outcome:
        return _of_tokens(super().loss(p, *_apart(x_BD, y_BE), now))

    def gradient(self, p: Parameters, x_BD: Tensor, y_BE: Tensor, now: Now) -> tuple[Outcome, SparseGradient]:
        outcome, gradient = super().gradient(p, *_apart(x_BD, y_BE), now)
        return _of_tokens(outcome), gradient

    def further(self, code: Code) -> Tensor | None:
        n_tokens = len(code) // (2 * len(self.ends_G))
        if self.config.contrastive == 0 or n_tokens < 2 or len(self.ends_G) < 2:
            return None
        high = code.keep(code.row_N % len(self.ends_G) == 0)
        starts_R1 = high.start_B1[:: len(self.ends_G)]  # rows of the low level are empty
        codes = Code(high.values_N, high.latents_N, starts_R1)
        own, before = _halves(unit_rows(codes))
        loss = info_nce(own, before, int(self.ends_G[0]), _TEMPERATURE)
        return self.config.contrastive / math.log(n_tokens) * loss


def unit_rows(code: Code) -> Code:
    """The code with rows of Euclidean norm 1, or 0 where nothing is active; differentiable."""
    squares_B = code.values_N.new_zeros(len(code)).index_add(0, code.row_N, code.values_N.square())
    scale_B = squares_B.where(squares_B > 0, 1.0).rsqrt()
    return code.with_values(code.values_N * scale_B[code.row_N])


def info_nce(one: Code, other: Code, width: int, temperature: float) -> Tensor:
    """The symmetric contrastive loss of matching rows of two codes with unit rows, in nats.

    Args:
        one, other: codes of B rows each; row b of one belongs to row b of the other.
        width: latents are below it.
    """
    blocks = []
    for start in range(0, len(one), max(1, _BLOCK // width)):
        stop = min(len(one), start + max(1, _BLOCK // width))
        block_HR = _rows(one, start, stop).dense(width).T
        blocks.append(other.decode(block_HR))  # similarities of all rows of `other` with these
    logits_BB = torch.cat(blocks, 1) / temperature
    target_B = torch.arange(len(one), device=logits_BB.device)
    return (cross_entropy(logits_BB, target_B) + cross_entropy(logits_BB.T, target_B)) / 2


def _rows(code: Code, start: int, stop: int) -> Code:
    """Rows start to stop of a code."""
    a, b = int(code.start_B1[start]), int(code.start_B1[stop])
    return Code(code.values_N[a:b], code.latents_N[a:b], code.start_B1[start : stop + 1] - a)


def _halves(code: Code) -> tuple[Code, Code]:
    return _rows(code, 0, len(code) // 2), _rows(code, len(code) // 2, len(code))


def _apart(x_BPD: Tensor, y_BPD: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (2 B, D): all tokens, then those before them."""
    x_RD = x_BPD.transpose(0, 1).flatten(0, 1)
    return x_RD, x_RD if y_BPD is x_BPD else y_BPD.transpose(0, 1).flatten(0, 1)


def _of_tokens(outcome: Outcome) -> Outcome:
    """The outcome as one of B tokens: the firings of the tokens themselves, and half the squared error of both halves."""
    return outcome._replace(squares=outcome.squares / 2, code=_halves(outcome.code)[0])
