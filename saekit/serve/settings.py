"""How the application is served."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from saekit.errors import ConfigError

PORT = 8391
SHORTEST_TOKEN = 16
_EVERYWHERE = ("0.0.0.0", "::")


@dataclass(frozen=True)
class ServeSettings:
    """How the application is served.

    Raises:
        ConfigError: the address is not of this machine alone and there is no token, or the token is too short.
    """

    host: str = "127.0.0.1"
    """Address that the server listens on."""
    port: int = PORT
    """0 takes a free port."""
    token: str | None = None
    """What a client has to know; None: nothing, which only a server on a loopback address may ask."""
    read_only: bool = False
    """Whether labels, notes, lists and saved runs are refused."""
    max_body: int = 1 << 20
    """Bytes of the largest request body that is read."""
    body_seconds: float = 20.0
    """How long a client may take to send a body."""

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < SHORTEST_TOKEN:
            raise ConfigError(
                f"The token has {len(self.token)} characters; it needs {SHORTEST_TOKEN} or more.",
                "`python -c 'import secrets; print(secrets.token_urlsafe())'` prints a good one.",
            )
        if self.token is None and not is_loopback(self.host):
            raise ConfigError(
                f"{self.host} can be reached from other machines, so it needs a token.",
                "Give --token, or leave out --host to serve this machine alone.",
            )

    @property
    def hosts(self) -> frozenset[str] | None:
        """Names that a request's Host header may have; None: any, where the server listens on every address of this machine.

        There the token keeps away what the check of names cannot.
        """
        if self.host in _EVERYWHERE:
            return None
        return frozenset({"127.0.0.1", "localhost", "::1", self.host.lower()})


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
