"""The weight of a sparsity penalty, adjusted during training until `l0` latents are active per token."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch

from trainers.loop.data_scaling import DataScaling
from trainers.objectives.base import Now, Objective, Outcome
from trainers.settings.config import TrainConfig
from trainers.settings.schedule import latents_per_token
from trainers.step.parameters import Parameters

_FIRST = 0.1  # initial penalty of l0 active latents, in units of FVU
_FOLLOWS = 20.0  # gain of the proportional term, in units of c
_LEARNS, _WITHIN, _MOST = 100.0, 0.1, 0.2  # gain of the integral term per run, its clip of e, and its largest change per step


class Penalised(Objective):
    """Base class of architectures with a sparsity penalty: the weight of the penalty, and a start with few active latents.

    Without a fixed `sparsity` the weight lambda is controlled by the error e of the logarithm of L0:

        lambda = c (1 + 20 e),   d log c = 100 e per run,   e = log(L0 / target)

    where e is clipped to [-1, 1] in the first equation and to [-0.1, 0.1] in the second. The proportional term keeps e small even
    if c is far off (0.05 if c is half of its final value), so the integral term has to be fast, or e would persist until the end
    of the run. If too few latents are active, lambda is negative: an inactive latent gets gradient from few tokens. c therefore
    does not fall below its initial value while lambda is negative. For the same reason the target falls to `l0` from `k_start`,
    so that L0 approaches it slowly from above.

    Attributes:
        shrinks: whether the penalty is on the magnitude of activations, in units of the data's standard deviation, instead of on
            their number. If l0 latents share the variance evenly, each has magnitude 1 / sqrt(l0).
        state: `log_weight` (log c) and `l0` (L0 of the last batch; -1 before the first).
    """

    splits = True
    shrinks = True

    def __init__(self, config: TrainConfig, reads: DataScaling, writes: DataScaling) -> None:
        super().__init__(config, reads, writes)
        log_weight = torch.full((), math.log(self.first_weight), device=config.device)
        self.state = {"log_weight": log_weight, "l0": torch.full_like(log_weight, -1)}

    @property
    def first_weight(self) -> float:
        """The initial value of c."""
        l0 = self.config.l0
        return _FIRST / (math.sqrt(l0) if self.shrinks else l0)

    @property
    def start_cut(self) -> float:
        """The initial cut of pre-activations at which L0 is that of the start of the schedule.

        Pre-activations of random unit rows are assumed normal with variance Var(x) / D.
        """
        deviation = math.sqrt(self.reads.variance / len(self.reads.centre_D))
        return NormalDist().inv_cdf(1 - self.start_share) * deviation * self.start_size

    @property
    def start_size(self) -> float:
        """The norm of encoder rows at which the reconstruction has the norm of the data."""
        return 1.0 if self.kind.transcodes else self.matched_size

    @property
    def expected(self) -> float:
        """The approximate number of active latents per token."""
        l0: float = self.state["l0"].item()
        return latents_per_token(self.config, 0.0) if l0 < 0 else l0

    def lifted(self, p: Parameters) -> Parameters:
        """Parameters for the AuxK loss of architectures in which b_enc decides what is active.

        b_enc can silence a latent on every input, which leaves AuxK no positive pre-activation to train. The forward pass
        therefore uses the b_enc that centres the pre-activations, and the gradient goes to the real b_enc (straight-through), so
        that it rises where the latent would help.
        """
        return Parameters(p, b_enc_F=self.centring(p.W_enc_FD.detach()) + (p.b_enc_F - p.b_enc_F.detach()))

    def penalty(self, now: Now) -> float:
        """lambda of the next step."""
        if self.config.sparsity is not None:
            warmup = self.config.sparsity_warmup
            return self.config.sparsity * (min(1.0, now.share / warmup) if warmup else 1.0)
        return math.exp(self.state["log_weight"].item()) * (1 + _FOLLOWS * self._excess(now))

    def observe(self, outcome: Outcome, now: Now) -> None:
        n_rows = self.group.n_rows(len(outcome.code))
        n_tokens = n_rows // self.group.copies
        firings = self.group.total((outcome.code.values_N > 0).sum())
        self.state["l0"].copy_(firings / n_rows)  # an average over steps would lag behind
        assert self.config.tokens is not None
        rate = min(_MOST, _LEARNS * n_tokens / self.config.tokens)
        excess, before = self._excess(now), self.state["log_weight"].item()
        after = before + rate * min(_WITHIN, max(-_WITHIN, excess))
        if excess < -1 / _FOLLOWS:
            after = max(after, min(before, math.log(self.first_weight)))
        self.state["log_weight"].fill_(after)

    def metrics(self, now: Now) -> dict[str, float]:
        # Without the proportional term, which fluctuates from step to step.
        controlled = self.config.sparsity is None
        return {"sparsity": math.exp(self.state["log_weight"].item()) if controlled else self.penalty(now)}

    def _excess(self, now: Now) -> float:
        """log(L0 / target), clipped to [-1, 1]; 0 before the first batch."""
        l0 = self.state["l0"].item()
        ratio = 1.0 if l0 < 0 else l0 / latents_per_token(self.config, now.share)
        return min(1.0, max(-1.0, math.log(ratio or math.exp(-1))))
