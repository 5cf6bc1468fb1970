"""Running the application until it is interrupted."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from saekit.errors import ConfigError
from saekit.serve.settings import ServeSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

_WAITING = 512  # connections that wait to be accepted


def listen(settings: ServeSettings) -> socket.socket:
    """A socket on the address and port of the settings.

    Raises:
        ConfigError: the port is taken, or the address is not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"There is no address {settings.host!r}: {error.strerror}.", "Leave out --host.") from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(_WAITING)
    except OSError as error:
        found.close()
        raise ConfigError(
            f"{settings.host} port {settings.port} cannot be used: {error.strerror}.",
            "Give another --port; --port 0 takes a free one.",
        ) from error
    return found


def address(settings: ServeSettings, listening: socket.socket) -> str:
    """The address that a browser opens, with the token where there is one."""
    host = "127.0.0.1" if settings.hosts is None else settings.host
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}/" + (f"?token={settings.token}" if settings.token else "")


def run(app: FastAPI, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until the process is interrupted.

    Args:
        ready: called when the first request can be answered.
    """
    import uvicorn

    from saekit.serve.warming import Warming

    warming = Warming(app.state.served)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            ready()
            warming.start()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            warming.end()  # before the databases are closed
            await super().shutdown(sockets=sockets)

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=2,
    )
    Server(config).run(sockets=[listening])
