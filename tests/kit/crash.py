"""The crash harness: run work in a child process, and kill it at any moment or at any change of the disk.

Children are forked from a process that has everything imported and compiled, so that a kill costs no start-up. The scripts
`crash_cache.py` and `crash_build.py` use it in processes of their own with one thread: a thread pool does not survive a fork.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable


def killed(work: Callable[[], None], now: Callable[[], bool] = lambda: False) -> bool:
    """Run `work` in a child and kill it as soon as `now()` is true.

    Returns:
        Whether the child was killed, by `now` or by itself, before `work` ended.

    Raises:
        AssertionError: `work` raised an error.
    """
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a child failed"
            return os.WIFSIGNALED(status)
        if now():
            os.kill(child, signal.SIGKILL)
        time.sleep(0.0005)


def after(seconds: float) -> Callable[[], bool]:
    """A function that is true after this many seconds."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def die_at(step: int) -> Callable[[], None]:
    """A function that, called in a process, makes it kill itself at its `step`th call that changes the disk."""
    calls = 0

    def counted(function: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    def patch() -> None:
        for name in ("fsync", "rename", "replace", "unlink", "mkdir", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))

    return patch
