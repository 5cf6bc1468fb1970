"""Files appear whole or not at all, and a folder that somebody else prepared cannot make saekit write elsewhere."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from saekit import files
from saekit.errors import StorageFull, WorkspaceError

OLD_NAME = "eval.json.partial"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_appears_with_its_whole_content(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with files.whole(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    files.write_whole(path, "two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == {"file"}


def test_new_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("")
    files.write_whole(tmp_path / "whole", "")
    with files.temporary_folder(tmp_path) as folder:
        (folder / "private").write_text("")
        (folder / "private").chmod(0o600)
        files.publish(folder / "private", tmp_path / "published")
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes["whole"] == modes["published"] == modes["usual"]


def test_a_failed_block_leaves_what_was_there(tmp_path: Path) -> None:
    files.write_whole(tmp_path / "file", "old")
    with pytest.raises(KeyError), files.whole(tmp_path / "file") as file:
        file.write(b"new")
        raise KeyError
    with pytest.raises(KeyError), files.temporary_folder(tmp_path) as folder:
        (folder / "a").write_text("new")
        raise KeyError
    assert names(tmp_path) == {"file"}
    assert (tmp_path / "file").read_text() == "old"


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    """The temporary name cannot be guessed, so that no link can be prepared for it."""
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    folder = tmp_path / "ws"
    folder.mkdir()
    (folder / OLD_NAME).symlink_to(precious)
    files.write_whole(folder / "eval.json", "new")
    assert precious.read_text() == "years of work"
    assert (folder / "eval.json").read_text() == "new"
    assert (folder / OLD_NAME).is_symlink()


def test_a_link_at_the_target_is_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    (tmp_path / "file").symlink_to(precious)
    files.write_whole(tmp_path / "file", "new")
    assert precious.read_text() == "years of work"
    assert not (tmp_path / "file").is_symlink()


def test_threads_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(50):
                files.write_whole(tmp_path / "file", str(number) * 10_000)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert names(tmp_path) == {"file"}
    content = (tmp_path / "file").read_text()
    assert content == content[0] * 10_000


def test_appending_follows_no_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    (tmp_path / "link").symlink_to(precious)
    os.link(precious, tmp_path / "second")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "second", "pipe"):
        with pytest.raises(WorkspaceError):
            files.open_append(tmp_path / name, truncate=True)
    assert precious.read_text() == "years of work"
    with files.open_append(tmp_path / "log") as log:
        log.write(b"a")
    with files.open_append(tmp_path / "log") as log:
        log.write(b"b")
    assert (tmp_path / "log").read_bytes() == b"ab"
    files.open_append(tmp_path / "log", truncate=True).close()
    assert (tmp_path / "log").read_bytes() == b""


def test_only_abandoned_files_of_our_own_are_removed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "work").write_text("years of work")
    folder = tmp_path / "ws"
    folder.mkdir()
    ours = [f".saekit-{number:016x}.partial" for number in range(3)]
    (folder / ours[0]).write_text("cut")
    (folder / ours[1]).mkdir()
    (folder / ours[1] / "cfg.json").write_text("cut")
    (folder / ours[1] / "link").symlink_to(precious)
    (folder / ours[2]).symlink_to(precious)
    (folder / "manifest.json.partial").write_text("of an earlier version")
    others = {"thesis.partial", ".saekit-notes.partial", "saekit.toml"}
    for name in others:
        (folder / name).write_text("precious")
    with files.whole(folder / "file") as file:
        file.write(b"held by a running process")
        files.clean(folder)
    assert names(folder) == others | {"file", ours[2]}
    assert (precious / "work").read_text() == "years of work"


def test_a_killed_process_leaves_what_can_be_cleaned(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from saekit import files
with files.whole(Path({str(tmp_path)!r}) / "a") as file, files.temporary_folder(Path({str(tmp_path)!r})) as folder:
    (folder / "b").write_text("cut")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(names(tmp_path)) == 2
    files.clean(tmp_path)
    assert not names(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_without_locks_only_old_temporary_files_are_abandoned(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    files.write_whole(tmp_path / "file", "content")
    recent, old = (tmp_path / f".saekit-{number:016x}.partial" for number in range(2))
    for path in (recent, old):
        path.write_text("cut")
    os.utime(old, (0, 0))
    files.clean(tmp_path)  # nobody can tell whether a recent one is in use
    assert names(tmp_path) == {"file", recent.name}


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageFull), files.whole(tmp_path / "file"):
        fail()
    assert not names(tmp_path)
