"""One pass at a time through a model.

Hooks live on the model's modules, and the choice of attention lives in its configuration. Both are shared by every thread and
by every LanguageModel that wraps the module. A lock per module therefore serialises the passes, and each hook acts only for the
pass that registered it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_creation = threading.Lock()


class _Thread(threading.local):
    innermost: object = None


_thread = _Thread()


def lock_of(module: nn.Module) -> threading.RLock:
    """The lock of a model, found by a module that all of its wrappers share (its first block).

    A thread may take it again while it holds it, as a run inside an edit does.
    """
    with _creation:
        lock = _locks.get(module)
        if lock is None:
            lock = _locks[module] = threading.RLock()
        return lock


@contextmanager
def innermost(owner: object) -> Iterator[None]:
    """Within the block, `owner` is the innermost pass of this thread: the only one whose hooks act."""
    before, _thread.innermost = _thread.innermost, owner
    try:
        yield
    finally:
        _thread.innermost = before


def is_innermost(owner: object) -> bool:
    """Whether `owner` is the innermost pass of this thread.

    False in the hooks of an outer pass while an edit runs the model, and when another thread calls the bare model.
    """
    return _thread.innermost is owner


def innermost_pass() -> object:
    """The innermost pass of this thread, or None outside of any."""
    return _thread.innermost
