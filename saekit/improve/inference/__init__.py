"""Efficient inference (section 5.3.2 of the survey)."""

from __future__ import annotations

from saekit.improve.registry import Recipe

ROWS: dict[str, Recipe] = {}
