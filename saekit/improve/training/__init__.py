"""Efficient training (section 5.3.1 of the survey)."""

from __future__ import annotations

from saekit.improve.registry import Recipe

ROWS: dict[str, Recipe] = {}
