"""Static weights: norms, outliers and kurtosis of matrices and of their rows. No text is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.lm.layout.matrices import matrices
from saekit.locate.magnitude.result import no_metric
from saekit.locate.scored import ranked
from saekit.names.ref import Ref

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.objects import Space
    from saekit.tasks import Ranking


def norm(weight_OI: Tensor) -> Tensor:
    """(O,) Euclidean norm of each row."""
    return weight_OI.norm(dim=1)


def outliers(weight_OI: Tensor) -> Tensor:
    """(O,) largest |w| of each row, in root mean squares of the whole matrix; above 6 it is an outlier."""
    return weight_OI.abs().amax(1) / weight_OI.square().mean().sqrt().clamp_min(1e-30)


def kurtosis(weight_OI: Tensor) -> Tensor:
    """(O,) excess kurtosis of each row: 0 for normal entries, high where few entries are large; 0 for a constant row."""
    centred = weight_OI - weight_OI.mean(1, keepdim=True)
    variance = centred.square().mean(1)
    return torch.where(variance > 0, (centred**4).mean(1) / variance.clamp_min(1e-30).square() - 3, 0.0)


STATISTICS = {"norm": norm, "outliers": outliers, "kurtosis": kurtosis}


def weight_statistics(
    lm: LanguageModel,
    data: None = None,
    *,
    spaces: Sequence[Space] | None = None,
    metric: None = None,
    positions: None = None,
    statistic: str = "norm",
    level: str = "row",
    progress: bool = True,
) -> Ranking:
    """A statistic of the weights of the layers. Rows are output features: row j gives output j.

    Args:
        statistic: "norm", "outliers" (largest |w| in root mean squares of the matrix), or "kurtosis" (excess).
        level: "row", or "matrix" for all entries of a matrix together.

    Raises:
        ConfigError: an option has another value, or spaces, a metric or positions are given.
    """
    no_metric(metric, "weight_statistics")
    if statistic not in STATISTICS or level not in ("row", "matrix"):
        raise ConfigError(f"There is no {statistic!r} of each {level!r}.", f"Choose {', '.join(STATISTICS)}, of row or matrix.")
    if positions is not None or spaces is not None:
        raise ConfigError("Weights have no positions, and are no activations.", "Leave positions and spaces out.")
    refs, scores = [], []
    for matrix in matrices(lm):
        whole = matrix.weight_OI.double().cpu()
        found = STATISTICS[statistic](whole if level == "row" else whole.reshape(1, -1))
        place = matrix.layer, matrix.name
        refs += [Ref.weight(*place, row) for row in range(len(found))] if level == "row" else [Ref.of_matrix(*place)]
        scores.append(found)
    if not refs:
        raise ConfigError(f"{lm.name} has no weights that can be read.", "Load it without quantisation.")
    facts: dict[str, Any] = {"statistic": statistic, "level": level}
    return ranked(refs, torch.cat(scores)[:, None], method="weight_statistics", lm=lm, **facts)
