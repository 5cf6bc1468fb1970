"""The version of saekit and, as data, of what it is built on."""

from __future__ import annotations

import platform
from importlib import metadata

from saekit.version import VERSION

_LIBRARIES = ("torch", "transformers", "datasets", "sae-lens", "safetensors", "h5py", "numba", "typer")


def versions() -> dict[str, str | None]:
    """Versions by name; None for a library that is not installed. Nothing is imported."""
    found: dict[str, str | None] = {"saekit": VERSION, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
