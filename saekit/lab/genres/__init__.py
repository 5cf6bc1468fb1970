"""The genres; importing this package registers them all."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace

from saekit.lab.registry import GENRES

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

from saekit.lab.shared_words import labelling  # noqa: E402  needs the concepts that the genres register

for _genre in list(GENRES.values()):
    GENRES[_genre.name] = replace(_genre, write=labelling(_genre.write, _genre.name))
