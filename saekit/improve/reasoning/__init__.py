"""Logic and reasoning (section 5.2.3 of the survey)."""

from __future__ import annotations

from saekit.improve.registry import Recipe

ROWS: dict[str, Recipe] = {}
