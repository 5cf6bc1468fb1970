"""The former place of :mod:`saekit.workspace.dictionaries`."""

from saekit.workspace.dictionaries import Dictionaries, stem

__all__ = ["Dictionaries", "stem"]
