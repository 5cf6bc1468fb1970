"""The former place of :mod:`saekit.workspace.study`."""

from saekit.workspace.study import FILE, FORMAT, Study, portable

__all__ = ["FILE", "FORMAT", "Study", "portable"]
