"""How well a dictionary reconstructs activations, and how often its latents fire."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from saekit.errors import CorpusError, StoreMismatch
from saekit.names.site import Site
from saekit.sae import SAE, CrossCoder, SparseCode

Batch = Mapping[Site, Tensor] | Tensor

QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
"""Shares of the tokens for which quantiles over tokens are given."""
DENSE = 0.1
"""A latent that fires on a larger share of the tokens counts as dense (arXiv 2407.14435, 2506.15679)."""


class Firings:
    """How many latents fire on each token, and how often each latent fires. A latent fires where its activation is not 0.

    Memory grows with F only.

    Attributes:
        tokens_F: (F,) int64, number of tokens on which each latent fires.
        tokens_L: (F + 1,) int64, number of tokens on which L latents fire.
    """

    def __init__(self, sae: SAE) -> None:
        F = sae.cfg.n_latents
        self.tokens_F = torch.zeros(F, dtype=torch.int64, device=sae.device)
        self.tokens_L = torch.zeros(F + 1, dtype=torch.int64, device=sae.device)

    @classmethod
    @torch.no_grad()
    def of(cls, sae: SAE, batches: Iterable[Batch]) -> Firings:
        """Count the firings of `sae` on batches of activations. Nothing is decoded.

        Raises:
            CorpusError: there is no token.
        """
        firings = cls(sae)
        for batch in batches:
            firings.add(sae.encode_sparse(_read(sae, batch)))
        firings.check()
        return firings

    def add(self, code: SparseCode) -> None:
        """Count the codes of a batch of tokens."""
        F, rows = len(self.tokens_F), code.rows
        fires_N = rows.values_N != 0
        self.tokens_F += torch.bincount(rows.latents_N[fires_N], minlength=F)
        n_fired_B = torch.bincount(rows.row_N[fires_N], minlength=len(rows))
        self.tokens_L += torch.bincount(n_fired_B, minlength=F + 1)

    def check(self) -> None:
        """Raise CorpusError if nothing was counted."""
        if self.n_tokens == 0:
            raise CorpusError("There are no held-out activations to measure on.", "Cache more documents, or hold out more.")

    @property
    def n_tokens(self) -> int:
        return int(self.tokens_L.sum())

    @property
    def l0(self) -> float:
        """Mean number of latents that fire on a token."""
        return float(self.tokens_F.sum()) / self.n_tokens

    @property
    def density_F(self) -> Tensor:
        """(F,) float64 share of the tokens on which each latent fires."""
        return self.tokens_F.double().cpu() / self.n_tokens

    @property
    def dead_fraction(self) -> float:
        """Share of the latents that fire on no token."""
        return float((self.tokens_F == 0).double().mean())

    @property
    def dense_fraction(self) -> float:
        """Share of the latents that fire on more than 10 % of the tokens."""
        return float((self.density_F > DENSE).double().mean())

    def l0_quantiles(self) -> dict[str, int]:
        """L0 by share of the tokens, for `QUANTILES`: that share of the tokens has at most this L0. Exact."""
        below_L = self.tokens_L.cumsum(0).cpu().double() / self.n_tokens
        places = torch.searchsorted(below_L, torch.tensor(QUANTILES, dtype=torch.float64))
        return {f"{q:.0%}": int(place) for q, place in zip(QUANTILES, places)}

    def histogram(self) -> dict[str, list[float]]:
        """Latents by the log10 of the share of tokens on which they fire, in steps of 1/4, without dead latents.

        Returns:
            edges: n + 1 logarithms. counts: n numbers of latents.
        """
        log_F = self.density_F[self.tokens_F.cpu() > 0].log10()
        low = min(-1, math.floor(4 * float(log_F.min()))) if len(log_F) else -1
        step_F = (4 * log_F).floor().long().clamp(max=-1) - low
        counts = torch.bincount(step_F, minlength=-low)
        return {"edges": [step / 4 for step in range(low, 1)], "counts": counts.tolist()}


class Reconstruction:
    """How well `sae` reconstructs activations, from running sums: one pass, and memory independent of the number of tokens.

    y is the target (what an SAE reads, or what a transcoder predicts), y_hat the reconstruction. Sums are in float64. Second
    moments are taken about a point near the mean, so that their differences keep their digits.

    Attributes:
        firings: how often the latents fire.
    """

    def __init__(self, sae: SAE) -> None:
        self.sae, self.firings = sae, Firings(sae)
        self._cosines = self._written = self._aligned = 0.0

    @classmethod
    def of(cls, sae: SAE, batches: Iterable[Batch]) -> Reconstruction:
        """Measure `sae` on batches of activations.

        Args:
            batches: activations (B, D), or dicts that hold them under the SAE's site (and the target under its `site_out`).

        Raises:
            CorpusError: there is no token.
        """
        found = cls(sae)
        for batch in batches:
            found.add(batch)
        found.firings.check()
        return found

    @torch.no_grad()
    def add(self, batch: Batch) -> None:
        """Add a batch. The quantiles of the first batch set the ranges of :meth:`fvu_by_norm`."""
        sae = self.sae
        if isinstance(batch, Tensor) and sae.cfg.transcodes:
            raise StoreMismatch(f"{sae.name} predicts another site than it reads.", "Give both, as {site: activations}.")
        x_BD = _read(sae, batch)
        y_BD = x_BD if isinstance(batch, Tensor) else _side_by_side(sae, batch, _written(sae))
        if not len(x_BD):
            return
        code = sae.encode_sparse(x_BD)
        scale_E = sae.scale_E() if isinstance(sae, CrossCoder) else 1.0
        y_BD, y_hat_BD, silent_BD = (each.double() * scale_E for each in (y_BD, sae.decode(code, x_BD), silent(sae, x_BD)))
        self.firings.add(code)
        self._cosines += float(cosine_similarity(y_BD, y_hat_BD, dim=1).sum())
        latents_BD = y_hat_BD - silent_BD
        self._written += float(latents_BD.square().sum())
        self._aligned += float((latents_BD * (y_BD - silent_BD)).sum())
        norm_B = y_BD.norm(dim=1)
        if self.firings.n_tokens == len(x_BD):
            self._begin(y_BD, norm_B)
        centred_BD = y_BD - self._origin_D
        facts = (torch.ones_like(norm_B), norm_B, (y_hat_BD - y_BD).square().sum(1), centred_BD.square().sum(1))
        range_B = torch.bucketize(norm_B, self._edges_Q)
        self._sums_QS.index_add_(0, range_B, torch.stack(facts, 1))
        if isinstance(sae, CrossCoder):
            self._squares_2E += torch.stack([(y_hat_BD - y_BD).square().sum(0), centred_BD.square().sum(0)])
        self._sums_QD.index_add_(0, range_B, centred_BD)

    def _begin(self, y_BD: Tensor, norm_B: Tensor) -> None:
        """Set the ranges of norms and the origin from the first batch, and the sums for each range to 0."""
        self._origin_D, self._edges_Q = y_BD.mean(0), norm_B.quantile(norm_B.new_tensor(QUANTILES))
        # Sums over the tokens of a range: 1, norm, squared error, squared distance from the origin; and coordinates from there.
        self._sums_QS = y_BD.new_zeros(len(QUANTILES) + 1, 4)
        self._sums_QD = y_BD.new_zeros(len(QUANTILES) + 1, y_BD.shape[1])
        self._squares_2E = y_BD.new_zeros(2, y_BD.shape[1])

    def scalars(self) -> dict[str, float]:
        """The measures as single numbers.

        Returns:
            fvu: fraction of variance unexplained, `sum ||y - y_hat||^2 / sum ||y - mean||^2`, with sums and mean over all tokens.
                `1 - fvu` is the explained variance (R^2 of arXiv 2503.09532 and of sae-lens).
            fvu_trimmed: FVU of the 99 % of the tokens with the smallest norms, about their own mean. A few tokens of huge norm
                (attention sinks, massive activations, arXiv 2402.17762) can decide `fvu`; they do not affect this measure.
            cosine: cosine similarity of y and y_hat, mean over tokens (2503.09532).
            shrinkage: gamma, the factor by which the output of the latents should be divided. 1 is unbiased; below 1 the output
                is too small. It is `argmin E||u / gamma - (y - c)||^2 = E||u||^2 / E[u . (y - c)]`, where c is the output without
                latents (b_dec) and u = y_hat - c. This is the relative reconstruction bias of Gated SAEs (2404.16014, eq. 10),
                except that they set c = 0; a large b_dec then hides the shrinkage of the latents.
            l0, dead_fraction, dense_fraction: of :class:`Firings`.
            n_tokens: number of tokens.
            fvu/SITE: only for a dictionary of several sites, the FVU of each site that it writes. The other measures then
                concern all these sites concatenated, each in units in which its activations have mean norm sqrt(width).
        """
        n = self.firings.n_tokens
        return {
            "fvu": _ratio(*(float(each.sum()) for each in self._errors_and_spreads())),
            "fvu_trimmed": self.fvu_trimmed(),
            "cosine": self._cosines / n,
            "shrinkage": self._written / self._aligned if self._aligned else math.nan,
            "l0": self.firings.l0,
            "dead_fraction": self.firings.dead_fraction,
            "dense_fraction": self.firings.dense_fraction,
            "n_tokens": n,
            **{f"fvu/{site}": fvu for site, fvu in self.fvu_by_site().items()},
        }

    def fvu_by_site(self) -> dict[Site, float]:
        """FVU of each site that a dictionary of several sites writes; empty for a dictionary of one site."""
        if not isinstance(self.sae, CrossCoder):
            return {}
        spreads_E = self._squares_2E[1] - self._sums_QD.sum(0).square() / self.firings.n_tokens
        sums = torch.stack([self._squares_2E[0], spreads_E.clamp_min(0)]).split(self.sae.cfg.widths_out, 1)
        return {site: _ratio(*part_2E.sum(1).tolist()) for site, part_2E in zip(self.sae.cfg.sites_out, sums)}

    def fvu_trimmed(self) -> float:
        """FVU of the tokens whose norm is at most the 99 % quantile of the norms in the first batch; NaN without such tokens."""
        tokens, _, error, spread = self._sums_QS[:-1].sum(0).tolist()
        if not tokens:
            return math.nan
        return _ratio(error, max(0.0, spread - float(self._sums_QD[:-1].sum(0).square().sum()) / tokens))

    def fvu_by_norm(self) -> list[dict[str, float]]:
        """FVU by the norm of the activations, the smallest norms first.

        The largest activations dominate an FVU over all tokens, because they count with their squares. A few of them (attention
        sinks, massive activations, arXiv 2402.17762) can hide the errors of all others. Here each range of norms has its own FVU,
        with variances about the mean of all tokens. Weighted by these variances, they average to the total.

        Returns:
            For each range between neighbouring `QUANTILES` of the first batch: `from` and `to` (shares of the tokens), `norm`
            (mean of ||y||), `tokens` and `fvu`. Ranges without a token are left out.
        """
        tokens_Q, norms_Q = self._sums_QS[:, 0], self._sums_QS[:, 1]
        bounds = zip((0.0, *QUANTILES), (*QUANTILES, 1.0))
        rows = zip(bounds, tokens_Q.tolist(), norms_Q.tolist(), *(each.tolist() for each in self._errors_and_spreads()))
        return [
            {"from": low, "to": high, "norm": norms / n, "tokens": int(n), "fvu": _ratio(error, spread)}
            for (low, high), n, norms, error, spread in rows
            if n
        ]

    def _errors_and_spreads(self) -> tuple[Tensor, Tensor]:
        """Sums by range of norms: squared errors, and squared distances from the mean of all tokens."""
        tokens_Q, _, errors_Q, spreads_Q = self._sums_QS.unbind(1)
        mean_D = self._sums_QD.sum(0) / tokens_Q.sum()
        return errors_Q, (spreads_Q - 2 * self._sums_QD @ mean_D + tokens_Q * mean_D.square().sum()).clamp_min(0)


def reconstruction(sae: SAE, batches: Iterable[Batch]) -> dict[str, float]:
    """How well `sae` reconstructs activations: the numbers of :meth:`Reconstruction.scalars`.

    Raises:
        CorpusError: there is no token.
    """
    return Reconstruction.of(sae, batches).scalars()


def _read(sae: SAE, batch: Batch) -> Tensor:
    """(B, D) activations that the SAE reads."""
    return _side_by_side(sae, batch, sae.cfg.reads)


def _written(sae: SAE) -> tuple[Site, ...]:
    """The sites that the SAE writes. Raises StoreMismatch if a transcoder does not say."""
    if sae.cfg.crosses:
        return sae.cfg.sites_out
    assert sae.cfg.site is not None
    return (sae.writes_at(sae.cfg.site),)


def _side_by_side(sae: SAE, batch: Batch, sites: Sequence[Site | None]) -> Tensor:
    """(B, D) activations at `sites`, concatenated, on the device of the SAE."""
    parts = [batch] if isinstance(batch, Tensor) else [batch[site] for site in sites if site is not None]
    rows = [part.to(sae.device).flatten(1) for part in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows, 1)


def silent(sae: SAE, x_BD: Tensor) -> Tensor:
    """Output of `sae` for x without latents: b_dec in the scale of x, and the skip connection of a skip transcoder."""
    zero_B1 = x_BD.new_zeros(len(x_BD), 1)
    return sae.decode(SparseCode(zero_B1, zero_B1.long()), x_BD)


def _ratio(error: float, spread: float) -> float:
    return error / spread if spread > 0 else float(error > 0)
