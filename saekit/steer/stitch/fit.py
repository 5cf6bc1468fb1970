"""Fitting the maps by least squares, with all tokens in one pass and moments in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError, CorpusError, StoreMismatch
from saekit.lm.run.batches import text_rows
from saekit.names.site import Site
from saekit.progress import track
from saekit.steer.stitch.stitch import Affine, Stitch

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

Texts = Sequence[str] | Sequence[Sequence[int]]
_RANK = 1e-11
"""Directions of the source with a smaller share of its largest variance are left out: rounding would decide about them."""


@dataclass(frozen=True)
class End:
    """A site of a model."""

    lm: LanguageModel
    site: Site | str

    @property
    def place(self) -> Site:
        """The site, checked.

        Raises:
            UnknownSite: the model lacks it.
        """
        return self.lm.site(self.site)

    @property
    def facts(self) -> dict[str, Any]:
        """Which model it is."""
        return {"model": self.lm.name, "fingerprint": self.lm.fingerprint()}


def fit_stitch(
    source: End, target: End, texts: Texts, *, ridge: float = 0.0, batch_size: int = 16, progress: bool = False
) -> Stitch:
    """Fit affine maps between the activations of two models on the same tokens, both ways (Chen et al. 2025, arXiv 2506.06609).

    Each map is the least-squares solution over the ordinary tokens, which is unique and needs no training; the paper trains both
    maps together by gradient descent.

    Args:
        source, target: the models, which share a tokenizer, and the sites.
        texts: texts, or rows of token ids.
        ridge: penalty on the squared weights, in units of the mean variance of the inputs.
        batch_size: texts run at a time.
        progress: show a progress bar.

    Raises:
        StoreMismatch: the models have different tokenizers.
        ConfigError: the penalty is negative.
        CorpusError: the texts have fewer than two ordinary tokens.
        UnknownSite: a model lacks its site.
    """
    if not (isfinite(ridge) and ridge >= 0):
        raise ConfigError(f"ridge={ridge} is no penalty.", "Give a number from 0.")
    moments, norms = _Moments(), []
    for x_ND, y_NE in paired(source, target, texts, batch_size=batch_size, progress=progress):
        moments.add(x_ND.double(), y_NE.double())
        norms.append(y_NE.norm(dim=1))
    if moments.n < 2:
        raise CorpusError("The texts have fewer than two ordinary tokens.", "Give longer texts.")
    facts = {
        "source": source.facts,
        "target": target.facts,
        "tokens": moments.n,
        "ridge": ridge,
        "site_norm": float(torch.cat(norms).median()),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Stitch(moments.solve(ridge), moments.swapped().solve(ridge), source.place, target.place, facts)


@torch.no_grad()
def paired(
    source: End, target: End, texts: Texts, *, batch_size: int = 16, progress: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Activations (N, d_a) and (N, d_b) float32 of the same ordinary tokens in both models, batch by batch.

    Raises:
        StoreMismatch: the models have different tokenizers.
    """
    check_tokenizers(source.lm, target.lm)
    rows = [row for row in text_rows(target.lm, texts) if row]
    longest = min(source.lm.max_context, target.lm.max_context)
    with track("reading both models", len(rows), unit="texts", enabled=progress) as bar:
        for start in range(0, len(rows), batch_size):
            tokens_BT, mask_BT = target.lm.text.pad([row[:longest] for row in rows[start : start + batch_size]], "right")
            kept_BT = target.lm.ordinary(tokens_BT, mask_BT).cpu()
            acts = []
            for end in (source, target):
                place = end.place
                run = end.lm.run(tokens_BT.to(end.lm.device), attention_mask=mask_BT.to(end.lm.device), read=[place], logits=None)
                acts.append(run[place].flatten(2).float().cpu()[kept_BT])
            yield acts[0], acts[1]
            bar.update(min(start + batch_size, len(rows)))


def check_tokenizers(source: LanguageModel, target: LanguageModel) -> None:
    """Refuse models whose tokens do not correspond.

    Raises:
        StoreMismatch: they have different tokenizers.
    """
    if source.text.sha256 != target.text.sha256:
        raise StoreMismatch(
            f"{source.name} and {target.name} have different tokenizers, so their activations are of different tokens.",
            "Stitch models that share a tokenizer.",
        )


class _Moments:
    """Sums of products of pairs of vectors, float64."""

    def __init__(self) -> None:
        self.n = 0
        self.x: Any = 0.0
        self.y: Any = 0.0
        self.xx: Any = 0.0
        self.xy: Any = 0.0
        self.yy: Any = 0.0

    def add(self, x_ND: Tensor, y_NE: Tensor) -> None:
        self.n += len(x_ND)
        self.x, self.y = self.x + x_ND.sum(0), self.y + y_NE.sum(0)
        self.xx, self.xy, self.yy = self.xx + x_ND.T @ x_ND, self.xy + x_ND.T @ y_NE, self.yy + y_NE.T @ y_NE

    def swapped(self) -> _Moments:
        """The moments with both sides exchanged."""
        other = _Moments()
        other.n, other.x, other.y = self.n, self.y, self.x
        other.xx, other.xy, other.yy = self.yy, self.xy.T, self.xx
        return other

    def solve(self, ridge: float) -> Affine:
        """The map from x to y with the least squared error."""
        mean_x, mean_y = self.x / self.n, self.y / self.n
        covariance = self.xx / self.n - torch.outer(mean_x, mean_x)
        across = self.xy / self.n - torch.outer(mean_x, mean_y)
        penalty = ridge * covariance.diagonal().mean() * torch.eye(len(mean_x), dtype=torch.float64)
        weight = (torch.linalg.pinv(covariance + penalty, hermitian=True, rtol=_RANK) @ across).T
        return Affine(weight.float(), (mean_y - weight @ mean_x).float())
