"""Numbers in few characters."""

from __future__ import annotations


def short(value: float) -> str:
    """1.5M, 20k, 0.05."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}" if abs(value) >= 1e-12 else "0"


def percent(value: float) -> str:
    """A share: 12%, 0.4%."""
    return f"{100 * value:.3g}%"


def times(value: float) -> str:
    """A ratio: 5.2×."""
    return f"{value:.3g}×"
