"""What the process finds around it: cores that are free to it, and folders for caches that can be written.

Nothing heavy is imported: the settings are environment variables that numerical libraries read when they are loaded.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_CGROUPS = Path("/sys/fs/cgroup")


def let_idle_threads_sleep() -> None:
    """Make threads of OpenMP and OpenBLAS sleep while they wait. By default they spin, which takes the cores from other jobs.

    A choice of the user (`OMP_WAIT_POLICY`, `GOMP_SPINCOUNT`, `KMP_BLOCKTIME`, `OPENBLAS_THREAD_TIMEOUT`) is kept.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # GNU, Intel and LLVM
        os.environ["KMP_BLOCKTIME"] = "0"
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # log2 of the cycles that a thread spins, 4 at least


def use_free_cores() -> None:
    """Give numerical libraries as many threads as a cgroup lets the process use cores.

    The libraries themselves look at the cores of the machine and at the affinity of the process. `OMP_NUM_THREADS` of the user is
    kept.
    """
    quota = cgroup_cores()
    if "OMP_NUM_THREADS" not in os.environ and quota is not None and quota < available_cores():
        os.environ["OMP_NUM_THREADS"] = str(quota)


def available_cores() -> int:
    """Cores that the process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_cores(root: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Whole cores that the cgroups of the process allow, at least 1; None without a limit.

    Args:
        root: where cgroups are mounted, version 1 or 2.
        own: the list of the process's cgroups.
    """
    shares = list(_quotas(root, own))
    return max(1, math.floor(min(shares))) if shares else None


def _quotas(root: Path, own: Path) -> Iterator[float]:
    """Limits in cores, of the process's cgroups and of those above them."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        below = Path(path.lstrip("/"))
        if controllers == "":
            folders = [root / each for each in (below, *below.parents)]
            yield from filter(None, (_quota_2(folder) for folder in folders))
        elif "cpu" in controllers.split(","):
            for mount in ("cpu", "cpu,cpuacct"):
                folders = [root / mount / each for each in (below, *below.parents)]
                yield from filter(None, (_quota_1(folder) for folder in folders))


def _quota_2(folder: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        if quota != "max":
            return int(quota) / int(period)
    return None


def _quota_1(folder: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        if quota > 0:
            return quota / int((folder / "cpu.cfs_period_us").read_text())
    return None


def use_writable_caches() -> None:
    """Point libraries to a temporary folder for the caches that they cannot write, as in a container with a read-only home.

    Variables that the user has set are kept. What can be read in a read-only cache of the Hugging Face hub is still read.
    """
    environ = os.environ
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  (Path raises an error where there is no home)
    if not home.is_absolute() and (folder := _temporary()) is not None:  # the user has no entry in the list of users
        environ["HOME"] = str(folder)
        environ.setdefault("USER", str(os.getuid()))
        home = folder
    caches = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
    hub = Path(environ.get("HF_HOME") or caches / "huggingface")
    package = Path(__file__).parent
    in_tree = all(_writable(folder) for folder in (package, package.parent / "trainers", package.parent / "feature_db"))
    wanted = {
        "NUMBA_CACHE_DIR": in_tree or _writable(caches / "numba"),
        "MPLCONFIGDIR": _writable(Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "matplotlib"),
        "TRITON_CACHE_DIR": _writable(home / ".triton"),
        "WANDB_CONFIG_DIR": _writable(home / ".config" / "wandb"),
        "WANDB_CACHE_DIR": _writable(caches / "wandb"),
        "WANDB_DATA_DIR": _writable(home / ".local" / "share" / "wandb"),
        "HF_DATASETS_CACHE": _writable(hub / "datasets"),
        "HF_MODULES_CACHE": _writable(hub / "modules"),
        "HF_XET_CACHE": _writable(hub / "xet"),
    }
    if not hub.exists():
        wanted["HF_HOME"] = _writable(hub)
    missing = [name for name, writable in wanted.items() if not writable and name not in environ]
    if missing and (folder := _temporary()) is not None:
        for name in missing:
            environ[name] = str(folder / name.removesuffix("_DIR").lower())


def _writable(path: Path) -> bool:
    """Whether files can be made in the folder `path`, or the folder itself where it does not exist yet."""
    while not path.exists():
        if path == path.parent:
            return False
        path = path.parent
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def _temporary() -> Path | None:
    """A folder for caches that belongs to this user alone; None where there is no temporary folder either."""
    import tempfile

    try:
        folder = Path(tempfile.gettempdir()) / f"saekit-cache-{os.getuid()}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        # Code is loaded from these caches, so a folder that somebody else can write is not used.
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return folder
        return Path(tempfile.mkdtemp(prefix="saekit-cache-"))
    except OSError:
        return None
