"""Fixtures shared by all tests: the real model and text that lie beside the project where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHARED = Path(os.environ.get("SAEKIT_SHARED", Path(__file__).parents[2] / "shared"))


def _shared(relative: str) -> Path:
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs {relative} in $SAEKIT_SHARED or in ../shared, which is not at hand")
    return path


@pytest.fixture(scope="session")
def stories_path() -> Path:
    """Folder of a small pretrained Llama-style model."""
    return _shared("models/stories260k")


@pytest.fixture(scope="session")
def tinystories_path() -> Path:
    """800 children's stories, one JSON object a line."""
    return _shared("data/tinystories_800.jsonl")


@pytest.fixture(scope="session")
def wikitext_path() -> Path:
    """1000 paragraphs of an encyclopedia, one JSON object a line."""
    return _shared("data/wikitext_1000.jsonl")


@pytest.fixture(scope="session")
def stories_lm(stories_path: Path) -> LanguageModel:
    """The pretrained model, loaded once. Tests must leave it as they found it."""
    from saekit.lm import LanguageModel

    return LanguageModel.load(stories_path)
