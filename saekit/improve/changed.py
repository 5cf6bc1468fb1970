"""What recipes change: see :mod:`saekit.evaluate.changed`."""

from saekit.evaluate.changed import Change, Changed

__all__ = ["Change", "Changed"]
