"""A small study, made once, and the application over it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from saekit.serve.app import create_app
from saekit.serve.settings import ServeSettings
from tests.kit.commands import Saekit

HOME = "http://127.0.0.1:8391"
Client = Callable[..., TestClient]


@pytest.fixture(scope="session")
def served_workspace(
    saekit: Saekit, stories_path: Path, tinystories_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished workspace called `study`. Tests must leave it as they found it."""
    folder = tmp_path_factory.mktemp("serve") / "study"
    arguments = ["--site", "resid_post.2", "--data", tinystories_path, "--latents", 256, "--k", 8]
    outcome = saekit("fit", stories_path, *arguments, "--tokens", 20_000, "--train-tokens", 60_000, "--out", folder, "--json")
    assert outcome.status == 0, outcome.stderr
    return folder


@pytest.fixture
def own_workspace(served_workspace: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(served_workspace, tmp_path / "study"))


@pytest.fixture(scope="session")
def open_client() -> Iterator[Client]:
    """`open_client(workspace, read_only=True)`: a browser that has the application open."""
    with ExitStack() as stack:

        def make(*workspaces: Path, base_url: str = HOME, **settings: Any) -> TestClient:
            app = create_app(workspaces, ServeSettings(**settings))
            client = TestClient(app, base_url=base_url, raise_server_exceptions=False, headers={"accept": "text/html"})
            return stack.enter_context(client)

        yield make


@pytest.fixture(scope="session")
def client(served_workspace: Path, open_client: Client) -> TestClient:
    """The application over the study."""
    return open_client(served_workspace)
