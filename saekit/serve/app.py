"""The application: its routers, its security and its errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from saekit.plugins import resolve
from saekit.serve import failures
from saekit.serve.routers import ROUTERS
from saekit.serve.security import Guard
from saekit.serve.settings import ServeSettings
from saekit.serve.state import Served
from saekit.version import VERSION


def create_app(workspaces: Sequence[str | Path], settings: ServeSettings | None = None) -> FastAPI:
    """The application over workspaces. No model is loaded.

    Args:
        workspaces: their folders.
        settings: how it is served; None: the defaults.

    Raises:
        WorkspaceError: a folder is not a workspace.
    """
    settings = settings or ServeSettings()
    served = Served(workspaces, settings)

    @asynccontextmanager
    async def open_until_the_end(app: FastAPI) -> AsyncIterator[None]:
        yield
        served.close()

    app = FastAPI(
        title="saekit",
        version=VERSION,
        docs_url=None,  # these pages load scripts from another host
        redoc_url=None,
        lifespan=open_until_the_end,
    )
    app.state.served = served
    for row in ROUTERS.values():
        app.include_router(resolve(row.target))
    failures.install(app)
    app.add_middleware(Guard, settings=settings)
    return app
