"""The weight of a sparsity penalty, found so that as many latents fire as were asked for."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch

from trainers.loop.data_scaling import DataScaling
from trainers.objectives.base import Now, Objective, Outcome
from trainers.settings.config import TrainConfig
from trainers.settings.schedule import latents_per_token
from trainers.step.parameters import Parameters

_FIRST = 0.1  # the penalty of the latents asked for before anything is known, in FVU
_FOLLOWS = 20.0  # how strongly the weight answers at once, in units of itself
_LEARNS, _WITHIN, _MOST = 100.0, 0.1, 0.2  # per run, times log (L0 / target), which counts so far; and at most in a step


class Penalised(Objective):
    """What architectures with a sparsity penalty share: its weight, and a start at which few latents fire.

    Without a given `sparsity` the weight is controlled, its size by what has been seen and its course by what is seen now:

        lambda = c (1 + 20 e),   d log c = 100 e per run,   e = log(L0 / target)

    with e between -1 and 1 in the first and between -.1 and .1 in the second. As lambda answers at once, e is small where c is
    far off (.05 where c is half of what it should be), so c has to learn fast from it, or e would last until the end of the run.
    Where too few fire lambda is below 0: a latent that has stopped firing has few tokens left that tell it what it misses. For
    this c has to stay large, and does not fall below what it began with while lambda is below 0. For the same reason the target
    falls to `l0` from `k_start`, so that L0 comes down on it slowly.

    Attributes:
        shrinks: whether the penalty is on how strongly latents fire, in units of the data's deviation, not on how many do. Of
            l0 latents that share the variance each has a size of 1 / sqrt(l0).
        state: of the objective: `log_weight` (log c) and `l0` (of the last batch; -1 before any).
    """

    splits = True
    shrinks = True

    def __init__(self, config: TrainConfig, reads: DataScaling, writes: DataScaling) -> None:
        super().__init__(config, reads, writes)
        log_weight = torch.full((), math.log(self.first_weight), device=config.device)
        self.state = {"log_weight": log_weight, "l0": torch.full_like(log_weight, -1)}

    @property
    def first_weight(self) -> float:
        """c before anything is known."""
        l0 = self.config.l0
        return _FIRST / (math.sqrt(l0) if self.shrinks else l0)

    @property
    def start_cut(self) -> float:
        """Where pre-activations are cut at first, so that as many latents fire as the schedule begins with.

        Those of random unit rows are taken for normal, of variance Var(x) / D.
        """
        deviation = math.sqrt(self.reads.variance / len(self.reads.centre_D))
        return NormalDist().inv_cdf(1 - self.start_share) * deviation * self.start_size

    @property
    def start_size(self) -> float:
        """That at which a reconstruction has the size of the data."""
        return 1.0 if self.kind.transcodes else self.matched_size

    @property
    def expected(self) -> float:
        """About how many latents fire on a token."""
        l0: float = self.state["l0"].item()
        return latents_per_token(self.config, 0.0) if l0 < 0 else l0

    def lifted(self, p: Parameters) -> Parameters:
        """What AuxK reads where b_enc is what keeps latents from firing.

        A latent that this has shut everywhere has no pre-activation above 0 for AuxK to work on. So it is put where
        pre-activations are centred, and takes AuxK's gradient all the same: where the latent would help, it rises.
        """
        return Parameters(p, b_enc_F=self.centring(p.W_enc_FD.detach()) + (p.b_enc_F - p.b_enc_F.detach()))

    def penalty(self, now: Now) -> float:
        """lambda in the step to come."""
        if self.config.sparsity is not None:
            warmup = self.config.sparsity_warmup
            return self.config.sparsity * (min(1.0, now.share / warmup) if warmup else 1.0)
        return math.exp(self.state["log_weight"].item()) * (1 + _FOLLOWS * self._excess(now))

    def observe(self, outcome: Outcome, now: Now) -> None:
        n_rows = self.group.n_rows(len(outcome.code))
        n_tokens = n_rows // self.group.copies
        firings = self.group.total((outcome.code.values_N > 0).sum())
        self.state["l0"].copy_(firings / n_rows)  # an average over steps would be late
        assert self.config.tokens is not None
        rate = min(_MOST, _LEARNS * n_tokens / self.config.tokens)
        excess, before = self._excess(now), self.state["log_weight"].item()
        after = before + rate * min(_WITHIN, max(-_WITHIN, excess))
        if excess < -1 / _FOLLOWS:
            after = max(after, min(before, math.log(self.first_weight)))
        self.state["log_weight"].fill_(after)

    def metrics(self, now: Now) -> dict[str, float]:
        # Without what it answers at once, which swings from step to step.
        controlled = self.config.sparsity is None
        return {"sparsity": math.exp(self.state["log_weight"].item()) if controlled else self.penalty(now)}

    def _excess(self, now: Now) -> float:
        """log(L0 / target), at most 1 and at least -1; 0 before anything is known."""
        l0 = self.state["l0"].item()
        ratio = 1.0 if l0 < 0 else l0 / latents_per_token(self.config, now.share)
        return min(1.0, max(-1.0, math.log(ratio or math.exp(-1))))
