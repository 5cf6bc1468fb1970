"""What one clamp of a feature causes on neutral prompts: which tokens gain, how far the prediction moves, the output score.

Many features are measured in one forward pass: a row of the batch is one prompt with one feature clamped. What comes before the
layer of the features is computed once for all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from feature_db.index.projection import score_scale
from saekit.errors import ConfigError, InterventionError
from saekit.lm.run.batches import text_rows
from saekit.names.positions import TokenPositions
from saekit.names.ref import Ref
from saekit.objects import space_of
from saekit.steer.amplitude import clamp
from saekit.steer.intervention import Intervention
from saekit.steer.output_score import output_scores
from saekit.steer.strength import DEFAULT, NormSource, StatsSource, Strength

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.lm.run.prefix import Recording
    from saekit.names.address import Address

NEUTRAL_PROMPTS = (
    "In my experience,",
    "I think that",
    "Then the man said:",
    "She looked at the",
    "It is known that",
    "They went to",
    "There was a",
    "We all saw that",
)
"""Openings after which almost anything can follow. The first is that of Arad et al. (2025)."""
_FEATURES = 32
"""Features in a forward pass. Their positions are compared in pairs, so that more take longer."""
_NUMBERS = 1 << 25
"""Logits in a forward pass at most."""
_TOLERANCE, _COARSE = {torch.float32: 1e-4, torch.float64: 1e-4}, 0.05
"""How far a probability of a batch may be from that of the prompt alone, as a share of the largest; _COARSE in half precision."""
_OF_THE_DEVICE = tuple(getattr(torch, name) for name in ("OutOfMemoryError", "AcceleratorError") if hasattr(torch, name))
"""RuntimeErrors that say nothing about the model. Earlier versions of PyTorch lack the second one."""


@dataclass(frozen=True)
class ClampSettings:
    """How a clamp is measured.

    Attributes:
        prompts: neutral texts. The feature is clamped at the last token of each, as `saekit steer` does for the first new token.
        strength: of the clamp, as `saekit steer` reads it: "0.5norm", "2max", "q.99".
        tokens: number of tokens kept that gain most.

    Raises:
        ConfigError: there is no prompt, or a number is not possible.
        InterventionError: the strength cannot be read.
    """

    prompts: tuple[str, ...] = NEUTRAL_PROMPTS
    strength: str = str(DEFAULT)
    tokens: int = 10

    def __post_init__(self) -> None:
        if not self.prompts or not all(isinstance(prompt, str) and prompt.strip() for prompt in self.prompts):
            raise ConfigError("A neutral prompt is missing or empty.", "Give one or more texts.")
        if self.tokens < 1:
            raise ConfigError(f"tokens={self.tokens} must be at least 1.")
        Strength.parse(self.strength)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "prompts": list(self.prompts)}


class ClampEffects(NamedTuple):
    """What the clamps of N features did, each number a mean over the neutral prompts.

    output_score_N: see :func:`output_scores`; NaN where no promoted token is known.
    effect_N: KL divergence of the prediction with the clamp from the one without, KL(base || clamped), in nats.
    tokens_NK: ids of the tokens whose log-probability rises most, -1 where fewer rise. The mean change of logits gives the same
        order (TokenChange, Gur-Arieh et al. 2025, arXiv 2501.08319): it differs by a number that is the same for all tokens.
    changes_NK: mean change of the log-probability, in nats.
    probabilities_NK: mean probability with the clamp.
    scores_NK: 0 to 1: distance of the change from the mean over all tokens in standard deviations, divided by 2 sqrt(2 ln V).
    """

    output_score_N: NDArray[np.float32]
    effect_N: NDArray[np.float32]
    tokens_NK: NDArray[np.int64]
    changes_NK: NDArray[np.float32]
    probabilities_NK: NDArray[np.float32]
    scores_NK: NDArray[np.float32]


class _Prompts(NamedTuple):
    """P prompts, run without a clamp."""

    tokens_PT: Tensor
    mask_PT: Tensor
    recording: Recording | None
    """To start at the layer of the features; None: the model is run from the start."""
    logp_PV: Tensor
    """Log-probabilities of the next token."""


def _chunks(rows: list[list[int]], most: int) -> list[list[list[int]]]:
    return [rows[start : start + most] for start in range(0, len(rows), most)]


class ClampMeasurement:
    """Clamps features on neutral prompts and measures the prediction of the next token.

    Args:
        lm: the model, with the dictionary attached.
        dictionary: its address.
        settings: prompts, strength, number of tokens.
        norms, stats: the measure that the unit of the strength needs; see :meth:`Intervention.resolve`.
        allowed_V: (V,) tokens that may be listed as gaining; None: all.

    Raises:
        UnknownSite: the model lacks the site of the dictionary.
        ConfigError: a prompt has no token.
        InterventionError: the model cannot run several rows at once, or predicts otherwise than of each prompt alone.
    """

    def __init__(
        self,
        lm: LanguageModel,
        dictionary: Address,
        settings: ClampSettings | None = None,
        *,
        norms: NormSource | None = None,
        stats: StatsSource | None = None,
        allowed_V: Tensor | None = None,
    ) -> None:
        self.lm, self.dictionary, self.settings = lm, dictionary, settings or ClampSettings()
        self._norms, self._stats, self._allowed_V = norms, stats, allowed_V
        space = space_of(lm, Ref.feature(dictionary, 0))
        layers = [site.layer for site in (space.site, space.site_out)]
        self._layer = None if None in layers else min(layer for layer in layers if layer is not None)
        self._prompts = self._run_prompts()
        vocabulary = self._prompts[0].logp_PV.shape[1]
        sizes = [len(each.logp_PV) for each in self._prompts]
        self.n_prompts = sum(sizes)
        self.together = max(1, min(_FEATURES, _NUMBERS // (vocabulary * max(sizes))))
        """Number of features that :meth:`measure` runs in one forward pass."""

    @torch.no_grad()
    def _run_prompts(self) -> list[_Prompts]:
        """The prompts, run in the fastest way that gives each the prediction that it has alone.

        Prompts in one batch with pads, or else those of one length together; from the layer of the features on, or else whole.
        """
        rows = text_rows(self.lm, self.settings.prompts)
        for prompt, row in zip(self.settings.prompts, rows):
            if not row:
                raise ConfigError(
                    f"The neutral prompt {prompt!r:.60} has no token of this model.", "Give another one: --prompts."
                )
        by_length: dict[int, list[list[int]]] = defaultdict(list)
        for row in rows:
            by_length[len(row)].append(row)
        ordered = [row for group in by_length.values() for row in group]
        alone_PV = torch.cat([self._whole(torch.tensor([row])) for row in ordered])
        most = max(1, _NUMBERS // (2 * alone_PV.shape[1]))  # each is run twice in a pass
        together = _chunks(ordered, most)
        equal = [chunk for group in by_length.values() for chunk in _chunks(group, most)]
        wrong, cause = "", None
        for groups, starts in ((together, True), (equal, True), (equal, False)):
            if starts and self._layer is None:
                continue
            try:
                found = [self._run_group(group, starts) for group in groups]
                error = self._error(found, alone_PV)
            except _OF_THE_DEVICE:
                raise
            except RuntimeError as caught:  # blocks that cannot be called again with more rows
                wrong, cause = f"it fails ({str(caught).partition(chr(10))[0]:.200})", caught
                continue
            if error <= _TOLERANCE.get(self.lm.dtype, _COARSE):
                return found
            wrong, cause = f"probabilities differ by {error:.2g} of the largest", None
        raise InterventionError(
            f"{self.lm.name} does not run two rows at once as it runs each alone: {wrong}.",
            "What clamps cause cannot be measured: leave it out with --no-effects, or load the model in another dtype.",
        ) from cause

    def _error(self, found: list[_Prompts], alone_PV: Tensor) -> float:
        """How far a probability is from that of the prompt alone where each group is run twice, as a share of the largest."""
        worst, largest = torch.zeros((), device=alone_PV.device), alone_PV.max().exp()
        for group, alone in zip(found, alone_PV.split([len(each.logp_PV) for each in found])):
            twice = self._predictions(group, 2, ())[len(alone) :]
            worst = torch.maximum(worst, (twice.exp() - alone.exp()).abs().max())  # NaN stays NaN
        return float(worst / largest)

    def _run_group(self, rows: list[list[int]], starts: bool) -> _Prompts:
        tokens_PT, mask_PT = self.lm.text.pad(rows, "left")
        recording = self.lm.record(tokens_PT, mask_PT) if starts else None
        group = _Prompts(tokens_PT, mask_PT, recording, torch.zeros(0))
        return group._replace(logp_PV=self._predictions(group, 1, ()))

    def _whole(self, tokens_PT: Tensor) -> Tensor:
        logits = self.lm.run(tokens_PT, logits="last").logits
        assert logits is not None
        return logits.float().log_softmax(-1)

    def _predictions(self, group: _Prompts, times: int, edits: Any) -> Tensor:
        """Log-probabilities (times * P, V) of the next token; row r is prompt r % P, and `At.batch_N` is r // P."""
        row_B = torch.arange(times).repeat_interleave(len(group.tokens_PT))
        each: dict[str, Any] = {"edits": edits, "logits": "last", "prompt_of_row": row_B}
        if group.recording is None or self._layer is None:
            mask = group.mask_PT.repeat(times, 1)
            run = self.lm.run(group.tokens_PT.repeat(times, 1), attention_mask=mask, **each)
        else:
            resid = group.recording.resid_pre(self._layer).repeat(times, 1, 1)
            run = self.lm.run(start_at=(group.recording, self._layer, resid), **each)
        assert run.logits is not None
        return run.logits.float().log_softmax(-1)

    def _clamps(self, units: Sequence[int]) -> Intervention:
        """Each unit clamped at the last token of the rows whose `At.batch_N` is its place among `units`."""
        changes = clamp([Ref.feature(self.dictionary, unit) for unit in units], Strength.parse(self.settings.strength)).resolve(
            self.lm, norms=self._norms, stats=self._stats
        )
        own = [TokenPositions(rows=tuple((-1,) if i == row else () for row in range(len(units)))) for i in range(len(units))]
        return Intervention(tuple(replace(change, positions=at) for change, at in zip(changes.changes, own)))

    @torch.no_grad()
    def measure(self, units: Sequence[int], promoted_NK: NDArray[np.int64]) -> ClampEffects:
        """Clamp each of N features once on every prompt.

        Args:
            units: numbers of the features, :attr:`together` at most.
            promoted_NK: ids of the tokens that each promotes most; -1 for none.

        Raises:
            InterventionError: the strength needs a measure that is not given, or a feature writes nothing.
        """
        clamps = self._clamps(units).edits(self.lm)
        N, promoted = len(units), torch.from_numpy(promoted_NK).to(self._prompts[0].logp_PV.device)
        score_N, kl_N = torch.zeros(N, device=promoted.device), torch.zeros(N, device=promoted.device)
        change_NV: Tensor | float = 0.0
        probability_NV: Tensor | float = 0.0
        for group in self._prompts:
            base_PV = group.logp_PV
            P = len(base_PV)
            logp_NPV = self._predictions(group, N, clamps).unflatten(0, (N, P))
            score_N += output_scores(logp_NPV.flatten(0, 1), promoted.repeat_interleave(P, 0)).unflatten(0, (N, P)).sum(1)
            difference_NPV = logp_NPV - base_PV
            kl_N -= (base_PV.exp() * difference_NPV).sum((1, 2))
            change_NV = change_NV + difference_NPV.sum(1)
            probability_NV = probability_NV + logp_NPV.exp().sum(1)
        n = self.n_prompts
        gains = self._gains(change_NV / n, probability_NV / n)  # type: ignore[arg-type]
        return ClampEffects((score_N / n).cpu().numpy(), (kl_N / n).clamp_min(0).cpu().numpy(), *gains)

    def _gains(self, change_NV: Tensor, probability_NV: Tensor) -> tuple[NDArray[Any], ...]:
        """Tokens, changes, probabilities and scores of the tokens that gain most."""
        V = change_NV.shape[1]
        mean, std = change_NV.mean(1, keepdim=True), change_NV.std(1, keepdim=True).clamp_min(1e-12)
        allowed = (
            change_NV if self._allowed_V is None else change_NV.masked_fill(~self._allowed_V.to(change_NV.device), -torch.inf)
        )
        best = allowed.topk(min(self.settings.tokens, V), dim=1)
        score = ((best.values - mean) / std / score_scale(V)).clamp(0, 1)
        tokens = best.indices.masked_fill(~(best.values > 0), -1)
        columns = (tokens, best.values.clamp_min(0), probability_NV.gather(1, best.indices), score)
        return tuple(column.cpu().numpy() for column in columns)
