"""A small study of the real model, made once by the command line itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.commands import Saekit


@pytest.fixture(scope="session")
def fit_arguments(stories_path: Path, tinystories_path: Path) -> list[object]:
    """A `fit` that takes seconds."""
    return [
        *("fit", stories_path, "--site", "resid_post.2", "--data", tinystories_path, "--latents", 512, "--k", 16),
        *("--tokens", 100_000, "--train-tokens", 400_000),
    ]


@pytest.fixture(scope="session")
def workspace(new_process: Saekit, fit_arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished workspace. Tests must leave it as they found it."""
    folder = tmp_path_factory.mktemp("study") / "ws"
    outcome = new_process(*fit_arguments, "--out", folder, "--json")
    assert outcome.status == 0, outcome.stderr
    assert outcome.json["sites"]["resid_post.2"]["fvu"] < 0.2
    return folder
