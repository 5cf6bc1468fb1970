"""Points in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

_WIDTH, _HEIGHT = 56, 12


def scatter(points: Sequence[tuple[float, float, str]], x_label: str, y_label: str) -> list[str]:
    """Lines of text that show points (x, y, mark), x from 0 on and y a share. Later points cover earlier ones."""
    most_x = max((x for x, _, _ in points), default=0.0) or 1.0
    most_y = max((y for _, y, _ in points), default=0.0) or 1.0
    grid = [[" "] * (_WIDTH + 1) for _ in range(_HEIGHT + 1)]
    for x, y, mark in points:
        grid[_HEIGHT - round(y / most_y * _HEIGHT)][round(x / most_x * _WIDTH)] = mark
    lines = [f"{y_label:>8}"]
    for number, row in enumerate(grid):
        label = f"{most_y:.1%}" if number == 0 else "0%" if number == _HEIGHT else ""
        lines.append(f"{label:>8} │{''.join(row).rstrip()}")
    lines.append(f"{'':8} └{'─' * (_WIDTH + 1)} {x_label}")
    lines.append(f"{'':9}0{f'{most_x:.3g}':>{_WIDTH}}")
    return lines
