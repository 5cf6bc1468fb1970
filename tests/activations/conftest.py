"""A tiny model, documents, and a store of their activations."""

from __future__ import annotations

from pathlib import Path

import pytest

from saekit.activations import ActivationStore, Corpus, write_store
from saekit.lm import LanguageModel
from tests.kit.tiny import make_documents, make_lm


@pytest.fixture(scope="session")
def tiny_lm() -> LanguageModel:
    """A tiny model. Tests must not change it."""
    return make_lm()


@pytest.fixture(scope="session")
def documents() -> list[str]:
    return make_documents(300)


@pytest.fixture(scope="session")
def tiny_store(tiny_lm: LanguageModel, documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """Two sites of different widths in several shards; about 6000 rows."""
    return write_store(
        tmp_path_factory.mktemp("stores") / "tiny",
        tiny_lm,
        ["resid_post.0", "neurons.1"],
        Corpus.open(documents),
        context=32,
        batch_size=8,
        shard_tokens=1500,
        progress=False,
    )


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
