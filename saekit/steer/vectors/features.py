"""Vectors of SAE features: the nested family v(J, beta) = sum over J of delta_j f_j, plus beta times DiffMean of the error.

delta_j = E+[a_j] - E-[a_j] over ordinary tokens, f_j the decoder row of feature j, error e = x - dec(enc(x)). With all features
and beta = 1, v is DiffMean: DiffMean(x) = delta W_dec + DiffMean(e), because the decoder's bias cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saekit.errors import ConfigError, InterventionError
from saekit.lm.run.batches import text_rows
from saekit.steer.amplitude import add
from saekit.steer.output_score import output_scores
from saekit.steer.target import Vector
from saekit.steer.vectors.data import FitData, Side
from saekit.steer.vectors.turning import turning_gradient

if TYPE_CHECKING:
    from saekit.sae import SAE

NEUTRAL = ("In my experience,", "I think that", "She looked at the", "There was a")


@dataclass(frozen=True, eq=False)
class SAEParts:
    """The parts of DiffMean that an SAE tells apart; F features, width D.

    Attributes:
        delta_F: mean coefficient on positive tokens minus that on negative ones.
        frequency_F: share of positive tokens on which a feature fires minus that of negative ones.
        auc_F: probability that a positive text has a larger mean coefficient than a negative one; ties count half.
        error_D: DiffMean of the error.
        sae: the dictionary.
    """

    delta_F: Tensor
    frequency_F: Tensor
    auc_F: Tensor
    error_D: Tensor
    sae: SAE

    def vector(self, features: Sequence[int] | Tensor | None = None, beta: float = 0.0) -> Tensor:
        """v(J, beta), (D,) float32; `features` None takes all."""
        chosen = slice(None) if features is None else torch.as_tensor(features)
        return (self.delta_F[chosen] @ self.rows_FD[chosen] + beta * self.error_D).float()

    @cached_property
    def rows_FD(self) -> Tensor:
        """Decoder rows, float64 on the CPU."""
        return self.sae.feature_vectors().detach().cpu().double()

    def shortlist(self, k: int) -> list[int]:
        """The k features that tell the sides apart best, by the mean of three ranks: |delta| times length of f_j, the frequency
        difference, and the distance of the AUC from one half.

        Features of the other side, with delta < 0, count as well: DiffMean turns them off.
        """
        sizes = self.delta_F.abs() * self.rows_FD.norm(dim=1)
        measures = (sizes, self.frequency_F.abs(), (self.auc_F - 0.5).abs())
        ranks = torch.stack([each.argsort(descending=True, stable=True).argsort() for each in measures]).double()
        order = ranks.mean(0).masked_fill(self.delta_F == 0, torch.inf).argsort(stable=True)
        return order[: min(k, int((self.delta_F != 0).sum()))].tolist()


def sae_parts(data: FitData) -> SAEParts:
    """Measure the parts on a contrast with the SAE that is attached at the site.

    Raises:
        InterventionError: the site has no SAE, or one whose decoder does not add up to the identity.
    """
    sae = data.lm.dictionaries.get(data.site)
    if sae is None:
        raise InterventionError(f"There is no SAE at {data.site}.", "Train one, or attach it: lm.attach_sae(site, sae).")
    if sae.cfg.transcodes or sae.cfg.normalizes:
        what = "writes elsewhere than it reads" if sae.cfg.transcodes else "scales each token"
        raise InterventionError(f"The dictionary at {data.site} {what}, so that means do not add up.", "Use --method diffmean.")
    positive, negative = _side(data, sae, "positive"), _side(data, sae, "negative")
    return SAEParts(
        positive.mean_F - negative.mean_F,
        positive.frequency_F - negative.frequency_F,
        _auc(positive.texts_NF, negative.texts_NF),
        positive.error_D - negative.error_D,
        sae,
    )


@dataclass(frozen=True, eq=False)
class _Side:
    mean_F: Tensor
    frequency_F: Tensor
    error_D: Tensor
    texts_NF: Tensor


@torch.no_grad()
def _side(data: FitData, sae: SAE, side: Side) -> _Side:
    totals = [torch.zeros(n, dtype=torch.double) for n in (sae.cfg.n_latents, sae.cfg.n_latents, data.lm.width(data.site))]
    texts, count = [], 0
    for _, acts_BTD, kept_BT in data.batches(side):
        for acts_TD, kept_T in zip(acts_BTD, kept_BT):
            if not kept_T.any():
                continue
            x_ND = acts_TD[kept_T].to(sae.device, sae.dtype)
            code = sae.encode_sparse(x_ND)
            a_NF = code.dense(sae.cfg.n_latents)
            error_ND = x_ND - sae.decode(code, x_ND)
            sums = (a_NF.double().sum(0), (a_NF != 0).double().sum(0), error_ND.double().sum(0))
            totals = [total + each.cpu() for total, each in zip(totals, sums)]
            texts.append(a_NF.mean(0).float().cpu())
            count += len(x_ND)
    if not count:
        raise InterventionError(f"The {side} side of the contrast has no ordinary token.", "Give texts of at least two tokens.")
    mean_F, frequency_F, error_D = (total / count for total in totals)
    return _Side(mean_F, frequency_F, error_D, torch.stack(texts))


def _auc(positive_NF: Tensor, negative_MF: Tensor, block: int = 4096) -> Tensor:
    """(F,) area under the ROC curve by ranks (Mann and Whitney); ties count half."""
    from scipy.stats import rankdata

    n, m = len(positive_NF), len(negative_MF)
    parts = []
    for start in range(0, positive_NF.shape[1], block):
        both = torch.cat([positive_NF[:, start : start + block], negative_MF[:, start : start + block]]).numpy()
        parts.append(torch.from_numpy(rankdata(both, axis=0)[:n].sum(0)))
    return (torch.cat(parts) - n * (n + 1) / 2) / (n * m)


@torch.no_grad()
def output_score_of(data: FitData, sae: SAE, features: Sequence[int], norm: float, prompts: Sequence[str] = NEUTRAL) -> Tensor:
    """(n,) output score of each feature, pushed by half of `norm` at the last token of neutral prompts, mean over prompts.

    The promoted tokens are the 20 of largest logit in the direction of the feature (Arad et al. 2025, arXiv 2505.20063).
    """
    from feature_db.index.projection import promoted

    lm = data.lm
    vectors_ND = sae.feature_vectors(list(features)).detach().cpu().float()
    promotes, _ = promoted(lm, vectors_ND, top=20)
    ids_NK = torch.as_tensor(promotes.item).reshape(len(vectors_ND), -1).long()
    rows = text_rows(lm, list(prompts))
    tokens_PT, mask_PT = lm.text.pad(rows, "left")
    scores = []
    for vector_D, ids_K in zip(vectors_ND, ids_NK):
        push = add(Vector(data.site, vector_D), 0.5 * norm / float(vector_D.norm()), positions="last")
        run = lm.run(tokens_PT.to(lm.device), attention_mask=mask_PT.to(lm.device), edits=[push], positions="last")
        assert run.logits is not None, "the run was asked for logits"
        logp_PV = run.logits[:, -1].float().log_softmax(-1).cpu()
        scores.append(output_scores(logp_PV, ids_K.expand(len(rows), -1)).mean())
    return torch.stack(scores).nan_to_num(0.0)


def sae_vector(data: FitData) -> Tensor:
    """v(J, beta), (width,): the part of DiffMean that makes the concept's words more probable.

    A shortlist of `k` (200) features is re-ranked by what its terms cause: delta_j times gradient . f_j, with the gradient of
    :func:`saekit.steer.vectors.turning.turning_gradient`. Of the terms that help, the best `keep` (80) make the vector. The term
    of the error is taken where it helps, or `beta` times, where `beta` is given. `keep=0` takes the shortlist as it is, and
    `output=1` re-ranks by output score instead. The features and their deltas are recorded as `refs` and `deltas`.

    Raises:
        ConfigError: `k` is below 1, or `keep` is negative.
        InterventionError: no feature tells the sides apart.
    """
    k, keep, output = data.option("k", 200, int), data.option("keep", 80, int), data.option("output", 0, int)
    if k < 1 or keep < 0:
        raise ConfigError(f"k={k} and keep={keep} are not possible.", "k must be at least 1, and keep at least 0.")
    parts = sae_parts(data)
    features = parts.shortlist(k)
    if not features:
        raise InterventionError("No feature tells the two sides apart.", "Use --method diffmean.")
    gradient_D = turning_gradient(data)
    if keep:
        effect = parts.delta_F[features]
        if output:
            effect = effect * parts.rows_FD[features].norm(dim=1) * output_score_of(data, parts.sae, features, _norm(data))
        else:
            effect = effect * (parts.rows_FD[features] @ gradient_D)
        helping = max(1, int((effect > 0).sum()))
        features = [features[i] for i in effect.argsort(descending=True, stable=True)[: min(keep, helping)].tolist()]
    helps = 1.0 if float(parts.error_D @ gradient_D) > 0 else 0.0
    beta = float(data.option("beta", helps, (int, float)))
    data.found.update(
        dictionary=parts.sae.fingerprint(),
        refs=[f"feature:{data.site}/{feature}" for feature in features],
        deltas=parts.delta_F[features].tolist(),
        beta=beta,
    )
    return parts.vector(features, beta)


def _norm(data: FitData) -> float:
    return float(torch.cat([rows.norm(dim=1) for rows in data.tokens("negative")]).median())
