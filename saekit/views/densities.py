"""How often the features of a dictionary fire."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def density_histogram(density_F: NDArray[np.float64]) -> dict[str, Any] | None:
    """Features by the log10 of the share of tokens on which they fire, in steps of 1/4; None if no feature fires.

    Returns:
        edges: n + 1 logarithms. counts: n numbers of features.
    """
    import numpy as np

    logs = np.log10(density_F[density_F > 0])
    if not len(logs):
        return None
    edges = np.arange(math.floor(4 * logs.min()), math.floor(4 * logs.max()) + 2) / 4
    counts, _ = np.histogram(logs, edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}
