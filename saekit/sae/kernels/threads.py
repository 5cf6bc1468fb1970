"""Blocks of rows on threads: each thread runs serial kernels and single-threaded torch products on its own blocks.

A block passes through the whole pipeline while it is in the cache of a core. Threads write to separate memory, so results do not
depend on the number of threads. There is only one pool of threads, because the pools of numba and OpenMP would compete for the
cores. Threads of this pool sleep while they wait.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

_pool: ThreadPoolExecutor | None = None
_pool_key: tuple[int, int] | None = None
_lock = threading.Lock()
_here = threading.local()


def run_blocks(work: Callable[[int, int], None], n: int, block: int) -> None:
    """Call `work(start, stop)` for every block of `block` of `n` items, on as many threads as torch is set to use.

    `work` must release the GIL while it computes, and must write only to its own items. The first exception is raised again.
    """
    blocks = [(start, min(n, start + block)) for start in range(0, n, block)]
    n_threads = getattr(_here, "n_threads", None) or torch.get_num_threads()
    if len(blocks) < 2 or n_threads < 2:
        for start, stop in blocks:
            work(start, stop)
        return
    threads = _threads(n_threads)
    futures = [threads.submit(work, start, stop) for start, stop in blocks]
    for future in futures:
        future.result()


def product(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """a @ b; on a CPU and without a gradient, in blocks of rows."""
    if a_MK.requires_grad or b_KN.requires_grad or a_MK.device.type != "cpu":
        return a_MK @ b_KN
    out_MN = a_MK.new_empty(len(a_MK), b_KN.shape[1])

    def work(a: int, b: int) -> None:
        torch.mm(a_MK[a:b], b_KN, out=out_MN[a:b])

    run_blocks(work, len(a_MK), 256)
    return out_MN


@contextmanager
def only_blocks() -> Iterator[None]:
    """Within the context, operations of torch use one thread, and :func:`run_blocks` uses as many threads as torch did before.

    Use it for loops whose large computations all run in blocks. On a busy machine, the threads of torch would wait longer for
    each other than its small operations take.
    """
    outside, n_threads = getattr(_here, "n_threads", None), torch.get_num_threads()
    _here.n_threads = outside or n_threads
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _here.n_threads = outside
        torch.set_num_threads(n_threads)


def _threads(n_threads: int) -> ThreadPoolExecutor:
    global _pool, _pool_key
    with _lock:
        if _pool is None or _pool_key != (os.getpid(), n_threads):  # a forked child has the object but not its threads
            _pool, _pool_key = _started(n_threads), (os.getpid(), n_threads)
        return _pool


def _started(n_threads: int) -> ThreadPoolExecutor:
    """A pool whose threads all run, each with one thread of torch."""
    before, ready = torch.get_num_threads(), threading.Barrier(n_threads + 1)
    pool = ThreadPoolExecutor(n_threads, "saekit", _one_torch_thread, (ready,))
    try:
        for _ in range(n_threads):
            pool.submit(lambda: None)
        ready.wait()
    except BaseException:  # interrupted: the threads must not wait for each other until the process ends
        ready.abort()
        pool.shutdown(wait=False)
        raise
    finally:
        torch.set_num_threads(before)  # a worker's setting also became the default of new threads
    return pool


def _one_torch_thread(ready: threading.Barrier) -> None:
    torch.get_num_threads()  # torch sets up this thread on the first call, which would undo the next line
    torch.set_num_threads(1)
    _here.n_threads = 1
    with suppress(threading.BrokenBarrierError):
        ready.wait()
