"""An attempt at an unknown model's path table, by the structure of its modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saekit.errors import UnsupportedModel
from saekit.lm.families import PATHS_HINT, Family


def guess_family(model: Any, paths: Mapping[str, Any]) -> Family:
    raise UnsupportedModel(f"The family {model.config.model_type!r} is not known.", PATHS_HINT)
