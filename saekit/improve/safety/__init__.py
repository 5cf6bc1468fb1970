"""Safety and reliability (section 5.1.1 of the survey)."""

from __future__ import annotations

from saekit.improve.registry import Recipe

ROWS: dict[str, Recipe] = {}
