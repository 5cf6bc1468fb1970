"""Registries, and the hook through which users add rows to them without editing saekit.

Set the environment variable `SAEKIT_PLUGINS` to a comma-separated list of modules or `.py` files. They are imported once, before
the first lookup in any registry and before the command line reads its arguments; on import they register their rows::

    # my_arch.py
    from saekit.sae.registry import ARCHITECTURES, Architecture

    ARCHITECTURES.register("mine", Architecture(activation=..., objective="my_arch:MyObjective"))

    $ SAEKIT_PLUGINS=my_arch.py saekit train ... --arch mine
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from saekit.errors import ConfigError, SaekitError

VARIABLE = "SAEKIT_PLUGINS"
Row = TypeVar("Row")

_lock = threading.RLock()
_loaded: set[str] = set()


def load() -> None:
    """Import the modules and files that `SAEKIT_PLUGINS` names, each once.

    Raises:
        ConfigError: one of them cannot be found or raises an error while it is imported.
    """
    if not (named := os.environ.get(VARIABLE)):
        return
    with _lock:
        for name in filter(None, (part.strip() for part in named.split(","))):
            if name in _loaded:
                continue
            _loaded.add(name)  # before the import: a plugin may look up rows while it is imported
            try:
                _import(name)
            except BaseException as error:
                _loaded.discard(name)
                if isinstance(error, SaekitError) or not isinstance(error, Exception):
                    raise
                raise ConfigError(
                    f"The plugin {name!r} could not be imported: {type(error).__name__}: {error}.",
                    f"{VARIABLE} lists modules or .py files, separated by commas.",
                ) from error


def resolve(target: Any) -> Any:
    """The object that a registry row refers to: `"package.module:name"` is imported, anything else is returned unchanged.

    Rows refer to objects in higher packages by such strings, so that a registry never imports what uses it.
    """
    if not isinstance(target, str):
        return target
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def nearest(name: object, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """A hint for an error message about an unknown name: the nearest known one, and the list of all."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=cutoff)
    return (f"Did you mean {near[0]!r}? " if near else "") + f"Known: {', '.join(known)}."


class Registry(Mapping[str, Row], Generic[Row]):
    """A table of extension points: name -> row. Plugins are loaded before the first lookup.

    Args:
        kind: what a row is, for error messages: "architecture".
        rows: the rows that saekit itself has.
        error: class of the error that :meth:`find` raises.
    """

    def __init__(self, kind: str, rows: Mapping[str, Row] | None = None, *, error: type[SaekitError] = ConfigError) -> None:
        self.kind, self._error = kind, error
        self._rows: dict[str, Row] = dict(rows or {})

    def register(self, name: str, row: Row) -> Row:
        """Add a row, and return it.

        Raises:
            ConfigError: the name is taken.
        """
        if name in self._rows:
            raise ConfigError(f"The {self.kind} {name!r} is registered already.", "Choose another name.")
        self._rows[name] = row
        return row

    def unregister(self, name: str) -> None:
        """Remove a row, if there is one."""
        self._rows.pop(name, None)

    def find(self, name: object) -> Row:
        """The row of that name.

        Raises:
            ConfigError: (or the registry's own error class) no row has that name; the message suggests the nearest names.
        """
        load()
        if not isinstance(name, str) or name not in self._rows:
            raise self._error(f"There is no {self.kind} {name!r}.", nearest(name, self._rows))
        return self._rows[name]

    def __getitem__(self, name: str) -> Row:
        load()
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        load()
        return iter(tuple(self._rows))

    def __len__(self) -> int:
        load()
        return len(self._rows)


def _import(name: str) -> None:
    if not name.endswith(".py"):
        importlib.import_module(name)
        return
    path = Path(name).expanduser().resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"There is no plugin file {path}.", f"{VARIABLE} lists modules or .py files, separated by commas.")
    if path.stem in sys.modules:
        raise ConfigError(f"The plugin file {path} has the name of a module that is imported already.", "Rename the file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # so that rows can refer to objects in it as "stem:name"
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
