"""Sparse codes; see :mod:`saekit.sae.code`."""

from saekit.sae.code import Code

__all__ = ["Code"]
