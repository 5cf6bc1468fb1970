"""Fairness and bias (section 5.1.2 of the survey)."""

from __future__ import annotations

from saekit.improve.registry import Recipe

ROWS: dict[str, Recipe] = {}
