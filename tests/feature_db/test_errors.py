"""Each failure has its own error: only damage is called damage, and no message advises to lose what people made."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from feature_db import FeatureDB, Label
from feature_db.errors import typed
from feature_db.store import checksums
from saekit.errors import ConfigError, DatabaseError, StorageFull
from tests.kit.planted import SITE

Index = Callable[..., FeatureDB]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("x"), TypeError("x"), IndexError("x")])
def test_mistakes_in_code_are_not_called_damage(error: Exception) -> None:
    with pytest.raises(type(error)), typed("f.sqlite"):
        raise error


def test_wrong_sql_and_wrong_use_pass_through(tmp_path: Path) -> None:
    db = sqlite3.connect(":memory:")
    for act in (lambda: db.execute("SELECT nothing FROM nowhere"), lambda: db.execute("SELECT ?", ())):
        with pytest.raises(sqlite3.Error), typed("f.sqlite"):
            act()


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (sqlite3.SQLITE_CORRUPT, DatabaseError, "damaged"),
        (sqlite3.SQLITE_CORRUPT | 1 << 8, DatabaseError, "damaged"),
        (sqlite3.SQLITE_NOTADB, DatabaseError, "damaged"),
        (sqlite3.SQLITE_FULL, StorageFull, "No room"),
        (sqlite3.SQLITE_BUSY, DatabaseError, "locked"),
        (sqlite3.SQLITE_READONLY, DatabaseError, "permissions"),
        (sqlite3.SQLITE_CANTOPEN, DatabaseError, "permissions"),
        (sqlite3.SQLITE_IOERR | 3 << 8, DatabaseError, "disk"),
    ],
)
def test_codes_of_sqlite(number: int, kind: type[Exception], words: str) -> None:
    error = sqlite3.OperationalError("what SQLite says")
    error.sqlite_errorcode = number
    with pytest.raises(kind, match=words) as raised, typed("f.sqlite"):
        raise error
    assert ("damaged" in str(raised.value)) == (words == "damaged")


def test_damage_never_advises_to_remove_the_file() -> None:
    error = sqlite3.DatabaseError("malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    with pytest.raises(DatabaseError) as raised, typed("f.sqlite"):
        raise error
    text = str(raised.value)
    assert "remove" not in text and "delete" not in text and "keep it" in text and "labels" in text


def test_a_locked_database(db: FeatureDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_db.store.connections._WAIT", 0.05)
    other = sqlite3.connect(db.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(DatabaseError, match="locked by another process"):
            db.set_label((SITE, 3), "x")
    finally:
        other.close()
    db.set_label((SITE, 3), "x")


def test_strange_numbers_and_texts(db: FeatureDB) -> None:
    for query in (None, b"x", 3, ["happy"]):
        with pytest.raises(ConfigError, match=r"query is .* not text"):
            db.search(query)  # type: ignore[arg-type]
    for k in (2.5, "3", None, 0, -1):
        with pytest.raises(ConfigError, match="k is"):
            db.search("happy", k)
    assert db.search("\udcff") == []
    assert db.search("\udcff happy") == db.search("happy")
    assert db.search("happy " * 50_000) == db.search("happy")
    assert db.search("a" * 1_000_000) == db.search("a" * 4096), "a long query is cut"
    db.search(" ".join(f"word{i}" for i in range(5000)))
    for query in ("\x1b]0;x\x07", "\x00", "happy\x00", "NEAR(", 'a" OR "b', "*", "-", "^", ":", "{label}: x"):
        db.search(query)
    for kinds in ("wrod", ["word", "dog"]):
        with pytest.raises(ConfigError, match="kind of feature"):
            db.search("happy", kinds=kinds)
    for density in ((float("nan"), 1.0), (0.0,), ("0", "1")):
        with pytest.raises(ConfigError, match="density"):
            db.search("happy", density=density)
    for act in (
        lambda: db.set_label((SITE, 3), "\udcff"),
        lambda: db.add_labels((SITE, 3), [Label("m", "\ud800")]),
        lambda: db.set_list("\udcff", [f"feature:{SITE}/3"]),
    ):
        with pytest.raises(ConfigError, match="Unicode"):
            act()


def run(*code: str, path: Path) -> str:
    """Run pieces of Python code in another process; what they print."""
    text = "\n".join(["import sys", *map(textwrap.dedent, code)])
    done = subprocess.run([sys.executable, "-c", text, str(path)], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def left_logged(path: Path) -> None:
    """Leave the database in write-ahead mode, as earlier versions did."""
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    checksums.record(path)


# Root writes everywhere unless it gives up its capabilities.
POWERLESS = """
    import ctypes
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)())
"""
FULL_DISK = """
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    import numba, torch, feature_db.db, saekit.objects
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
"""
READS = f"""
    from feature_db import FeatureDB
    from saekit.errors import DatabaseError, StorageFull
    with FeatureDB.open(sys.argv[1]) as db:
        assert db.search("happy", 1)[0].feature == 2
        assert db.feature("{SITE}", 2).label == "fires on 'happy'"
        assert db.vectors("{SITE}").shape == (32, 32)
        assert db.verify() == [], db.verify()
        try:
            db.set_label(("{SITE}", 2), "x")
        except Exception as error:
            print(type(error).__name__, error)
"""


@pytest.mark.parametrize("logged", [False, True])
def test_a_read_only_folder(index: Index, tmp_path: Path, logged: bool) -> None:
    index(tmp_path / "ws" / "features.sqlite").close()
    path = tmp_path / "ws" / "features.sqlite"
    if logged:
        left_logged(path)
    before = sorted(path.parent.iterdir())
    path.parent.chmod(0o555)
    path.chmod(0o444)
    out = run(POWERLESS, READS, path=path)
    path.parent.chmod(0o755)
    assert out.startswith("DatabaseError") and "permissions" in out and "damaged" not in out
    assert sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize("logged", [False, True])
def test_a_full_disk(index: Index, tmp_path: Path, logged: bool) -> None:
    index().close()
    path = tmp_path / "features.sqlite"
    if logged:
        left_logged(path)
    out = run(FULL_DISK, READS, path=path)
    assert out.split(" ")[0] in ("StorageFull", "DatabaseError") and "damaged" not in out
    with FeatureDB.open(path) as db:
        assert db.feature(SITE, 2).label == "fires on 'happy'"
