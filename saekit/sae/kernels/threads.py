"""Row blocks over threads: each worker runs serial kernels and single-threaded torch products on blocks of its own.

A block goes through its whole pipeline while it is in a core's cache, nothing is shared, so results do not depend on the
number of threads, and no two thread pools fight over the cores (numba's and torch's OpenMP pools do).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

_pool: ThreadPoolExecutor | None = None
_pool_key: tuple[int, int] | None = None
_lock = threading.Lock()
_here = threading.local()


def run_blocks(work: Callable[[int, int], None], n: int, block: int) -> None:
    """Call `work(start, stop)` for all blocks of `block` items of `n`, on as many threads as torch is set to use.

    `work` must release the GIL where it computes and write only to its own items. The first exception is raised again here.
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
    """a @ b; on a CPU and without a gradient, rows in blocks of their own."""
    if a_MK.requires_grad or b_KN.requires_grad or a_MK.device.type != "cpu":
        return a_MK @ b_KN
    out_MN = a_MK.new_empty(len(a_MK), b_KN.shape[1])

    def work(a: int, b: int) -> None:
        torch.mm(a_MK[a:b], b_KN, out=out_MN[a:b])

    run_blocks(work, len(a_MK), 256)
    return out_MN


@contextmanager
def only_blocks() -> Iterator[None]:
    """Within, torch's own operations take one thread and :func:`run_blocks` as many as torch had.

    For a loop whose every large computation is in blocks: on a busy machine, torch's threads wait longer for one another than
    its small operations take.
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
            before, ready = torch.get_num_threads(), threading.Barrier(n_threads + 1)
            _pool, _pool_key = ThreadPoolExecutor(n_threads, "saekit", _one_torch_thread, (ready,)), (os.getpid(), n_threads)
            for _ in range(n_threads):
                _pool.submit(lambda: None)
            ready.wait()
            torch.set_num_threads(before)  # a worker's setting also became the default of threads to come
        return _pool


def _one_torch_thread(ready: threading.Barrier) -> None:
    torch.get_num_threads()  # makes torch set up this thread, which would undo the next line later
    torch.set_num_threads(1)
    _here.n_threads = 1
    ready.wait()
