"""Names of a package that are loaded when they are first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def attributes(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose names are loaded when first used. `dir(package)` lists its `__all__`.

    Args:
        package: name of the package, which is being imported and has set `__all__` when `dir` is called.
        homes: name -> the module that defines it.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    namespace = vars(sys.modules[package])
    namespace["__dir__"] = lambda: sorted(namespace["__all__"])
    return load
