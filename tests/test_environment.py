"""Threads that sleep, cores that are free, caches that can be written."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from saekit import environment


def test_the_command_line_lets_threads_sleep_before_openmp_is_loaded() -> None:
    code = """
import os, sys
from saekit import cli

def hook(event, arguments):
    if event == "import" and arguments[0] in ("torch", "numpy", "numba") and arguments[0] not in found:
        found[arguments[0]] = os.environ.get("OMP_WAIT_POLICY")

found = {}
sys.addaudithook(hook)
sys.argv = ["saekit", "fit", "./nothing-here", "--site", "resid_post.0"]
try:
    cli.main()
except SystemExit:
    print(found, file=sys.stderr)
"""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_WAIT", "GOMP", "KMP"))}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    found = ast.literal_eval(done.stderr.splitlines()[-1])
    assert "torch" in found and set(found.values()) == {"PASSIVE"}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_the_user_says_of_waiting_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "7")
    environment.let_idle_threads_sleep()
    assert os.environ[name] == "7"
    assert sum(other in os.environ for other in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")) == 1


def _cgroup(root: Path, files: dict[str, str], own: str) -> int | None:
    for name, content in files.items():
        path = root / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (root / "own").write_text(own)
    return environment.cgroup_cores(root / "fs", root / "own")


@pytest.mark.parametrize(
    ("files", "own", "cores"),
    [
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"cpu.max": "350000 100000\n"}, "0::/\n", 3),
        ({"cpu.max": "50000 100000\n"}, "0::/\n", 1),
        ({"a/cpu.max": "800000 100000\n", "a/b/cpu.max": "max 100000\n"}, "0::/a/b\n", 8),
        ({"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "800000 100000\n"}, "0::/a/b\n", 2),
        ({"cpu/x/cpu.cfs_quota_us": "400000", "cpu/x/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/x\n0::/\n", 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "3:cpu:/\n", None),
        ({"cpu.max": "nonsense\n"}, "0::/\nnonsense\n", None),
        ({}, "", None),
    ],
)
def test_the_limit_of_a_cgroup(files: dict[str, str], own: str, cores: int | None, tmp_path: Path) -> None:
    assert _cgroup(tmp_path, files, own) == cores


def test_a_limit_sets_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(environment, "available_cores", lambda: 64)
    monkeypatch.setattr(environment, "cgroup_cores", lambda: 4)
    environment.use_free_cores()
    assert os.environ["OMP_NUM_THREADS"] == "4"
    monkeypatch.setattr(environment, "cgroup_cores", lambda: 2)
    environment.use_free_cores()
    assert os.environ["OMP_NUM_THREADS"] == "4"


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A home that cannot be made, and a folder for temporary files."""
    for name in list(os.environ):
        if name.endswith(("_CACHE", "_CACHE_DIR", "_CONFIG_DIR", "_DATA_DIR")) or name in (
            "HF_HOME",
            "MPLCONFIGDIR",
            "XDG_CACHE_HOME",
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/dev/null/home")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = dict(os.environ)
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)


def test_caches_go_to_a_private_folder_where_home_cannot_be_written(no_home: Path) -> None:
    environment.use_writable_caches()
    for name in ("HF_HOME", "HF_DATASETS_CACHE", "MPLCONFIGDIR", "TRITON_CACHE_DIR"):
        assert Path(os.environ[name]).parent.parent == no_home, name
    assert (no_home / f"saekit-cache-{os.getuid()}").stat().st_mode & 0o777 == 0o700


def test_a_cache_that_somebody_else_prepared_is_not_used(no_home: Path) -> None:
    trap = no_home / f"saekit-cache-{os.getuid()}"
    trap.mkdir()
    trap.chmod(0o777)
    environment.use_writable_caches()
    assert Path(os.environ["HF_HOME"]).parent != trap


def test_nothing_changes_where_home_can_be_written(no_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(no_home))
    before = dict(os.environ)
    environment.use_writable_caches()
    assert dict(os.environ) == before
