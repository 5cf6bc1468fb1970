from __future__ import annotations

import pytest

from saekit.lm import LanguageModel


@pytest.fixture(scope="session")
def lab_lm() -> LanguageModel:
    return LanguageModel.load("lab")
