"""Models of new families from end to end on the command line. `python scripts/fit_families.py` runs every one of its list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts.fit_families import FAMILIES, fit_family
from tests.kit.commands import Saekit

SOME = ["granite", "mamba2", "qwen2_5_vl"]


@pytest.mark.parametrize("name", SOME)
def test_fit_search_show_and_steer(saekit: Saekit, stories_path: Path, tinystories_path: Path, tmp_path: Path, name: str) -> None:
    def run(*arguments: object) -> Any:
        outcome = saekit(*arguments, "--json")
        if outcome.status:
            raise RuntimeError(outcome.stderr)
        return outcome.json

    assert name in FAMILIES
    assert fit_family(name, tmp_path, stories_path, tinystories_path, run)["fvu"] < 0.9
