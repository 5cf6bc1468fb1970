"""Caches that were killed, damaged or stopped by a full disk or NaN. Complete shards stay; the final bytes are always equal."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saekit.activations import ActivationStore, Corpus, TokenBatch, token_batches, write_store
from saekit.activations.store.shard_writer import ShardLayout, write_shards
from saekit.errors import NonFiniteActivations, StorageFull, StoreCorrupt, StoreMismatch, WorkspaceError
from saekit.lm import LanguageModel, Site
from tests.kit.tiny import SPECIAL, WORDS, make_documents, make_lm

from .conftest import files_of

SETTINGS: dict[str, Any] = {"context": 16, "batch_size": 4, "shard_tokens": 300, "progress": False}


@pytest.fixture
def corpus() -> Corpus:
    return Corpus.open(make_documents(120))


@pytest.mark.parametrize(("packing", "when", "least"), [("pack", "moments", 10), ("document", "steps", 25)])
def test_killed_at_any_moment(packing: str, when: str, least: int, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.kit.crash_cache", str(tmp_path), packing, when],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= least
    whole = files_of(tmp_path / "whole")
    assert len(whole) >= 5
    others = [folder for folder in tmp_path.iterdir() if folder.name != "whole"]
    assert others
    for folder in others:
        assert files_of(folder) == whole, folder.name


def test_a_finished_store_is_left_alone(tiny_lm: LanguageModel, corpus: Corpus, tmp_path: Path) -> None:
    write_store(tmp_path / "a", tiny_lm, ["embed"], corpus, **SETTINGS)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    broken = make_lm()
    broken.model.forward = None  # the model must not run
    store = write_store(tmp_path / "a", broken, ["embed"], corpus, **{**SETTINGS, "batch_size": 2, "shard_tokens": 77})
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()} == before
    assert store.complete


def test_a_finished_store_does_not_need_its_corpus(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    class Vanishing(list):
        def __iter__(self) -> Iterator[str]:
            read.append(1)
            return super().__iter__()

    read: list[int] = []
    corpus = Corpus.open(Vanishing(make_documents(20)))
    write_store(tmp_path / "a", tiny_lm, ["embed"], corpus, **SETTINGS)
    read.clear()
    write_store(tmp_path / "a", tiny_lm, ["embed"], corpus, **SETTINGS)
    assert not read


def test_unrelated_folders_are_left_alone(tiny_lm: LanguageModel, corpus: Corpus, tmp_path: Path) -> None:
    for name in ("shard-00000.h5.txt", "shard-00001.h5", "thesis.partial"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("precious")
        with pytest.raises(StoreMismatch, match=f"holds '{name}', and no activations"):
            write_store(folder, tiny_lm, ["embed"], corpus, **SETTINGS)
        assert files_of(folder) == {name: b"precious"}
    with pytest.raises(StoreMismatch, match="is a file"):
        write_store(folder / name, tiny_lm, ["embed"], corpus, **SETTINGS)


def test_what_a_killed_process_left_is_removed(tiny_lm: LanguageModel, corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "store"
    whole = files_of(write_store(path, tiny_lm, ["embed"], corpus, **SETTINGS).path)
    (path / "shard-00002.h5").unlink()
    for name in ("shard-00002.h5.partial", "shard-00099.h5", "manifest.json.partial"):
        (path / name).write_bytes(b"cut")
    write_store(path, tiny_lm, ["embed"], corpus, **SETTINGS)
    assert files_of(path) == whole


@pytest.mark.parametrize("damage", ["missing", "cut short", "emptied", "longer"])
def test_damaged_shards_are_rewritten(damage: str, tiny_lm: LanguageModel, corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "store"
    write_store(path, tiny_lm, ["resid_post.1"], corpus, **SETTINGS)
    whole = files_of(path)
    for shard in (sorted(path.glob("*.h5"))[i] for i in (0, 3, -1)):
        if damage == "missing":
            shard.unlink()
        else:
            data = shard.read_bytes()
            shard.write_bytes({"cut short": data[:-1], "emptied": b"", "longer": data + b"\0"}[damage])
    with pytest.raises(
        StoreCorrupt, match=rf"shard-00000.h5 {'is missing' if damage == 'missing' else 'has [0-9]+ bytes of'}.*move it away"
    ):
        ActivationStore.open(path)
    write_store(path, tiny_lm, ["resid_post.1"], corpus, **SETTINGS).verify(progress=False)
    assert files_of(path) == whole


def test_one_writer_at_a_time(tiny_lm: LanguageModel, corpus: Corpus, tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with pytest.raises(WorkspaceError, match="Another process is writing"):
        write_store(tmp_path, tiny_lm, ["embed"], corpus, **SETTINGS)
    os.close(folder)
    write_store(tmp_path, tiny_lm, ["embed"], corpus, **SETTINGS)


def _poison(lm: LanguageModel, word: str, value: float) -> None:
    with torch.no_grad():
        lm.embedding.weight[WORDS.index(word) + len(SPECIAL), 3] = value  # type: ignore[union-attr,index]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_found_where_they_are(value: float, tmp_path: Path) -> None:
    lm = make_lm()
    _poison(lm, "w7", value)
    documents = ["w1 w2 w3", *["w4 w5"] * 300, "w1 w7 w2"]
    corpus = Corpus.open(documents)
    (position,) = (
        int(b.position_BT[b.tokens_BT == 10]) for b in token_batches(lm, corpus, context=16) if (b.tokens_BT == 10).any()
    )
    kind = "NaN" if value != value else "infinite"
    with pytest.raises(NonFiniteActivations, match=rf"embed at document 301, position {position} \(token 10\) is {kind}"):
        write_store(tmp_path / "a", lm, ["embed", "resid_post.1"], corpus, **SETTINGS)
    # The earlier shards are complete, and there are no other files.
    store = ActivationStore.open(tmp_path / "a", partial=True)
    assert 300 <= store.n_tokens < 4 * 304
    assert {path.name for path in store.path.iterdir()} == {"manifest.json", *(entry.file for entry in store.manifest.shards)}
    with pytest.raises(StoreCorrupt, match="unfinished"):
        ActivationStore.open(tmp_path / "a")
    # Without a complete shard, nothing remains.
    with pytest.raises(NonFiniteActivations):
        write_store(tmp_path / "b" / "c", lm, ["embed"], Corpus.open(documents[-1:]), **SETTINGS)
    assert not (tmp_path / "b" / "c").exists()


def test_numbers_too_large_for_float16(tmp_path: Path) -> None:
    lm = make_lm()
    _poison(lm, "w7", -70_000.0)
    corpus = Corpus.open(["w1 w7"])
    with pytest.raises(
        NonFiniteActivations, match=r"document 0, position 2 .* beyond 65,504, the most that float16 holds. Store it as bfloat16"
    ):
        write_store(tmp_path / "a", lm, ["embed"], corpus, dtype="float16", **SETTINGS)
    assert not (tmp_path / "a").exists()
    assert write_store(tmp_path / "a", lm, ["embed"], corpus, dtype="bfloat16", **SETTINGS).n_tokens == 3
    # This value is just above the limit, but rounds to it, so it can be stored.
    _poison(lm, "w7", 65_510.0)
    store = write_store(tmp_path / "b", lm, ["embed"], corpus, dtype="float16", **SETTINGS)
    assert next(iter(store.stream(["embed"]))).acts[store.sites[0]].max() == 65_504


def _batches(lm: LanguageModel, corpus: Corpus, spoilt: int) -> list[tuple[TokenBatch, dict[Site, Tensor]]]:
    """Batches and their activations. Batch `spoilt` contains a NaN."""
    pairs = []
    for n, batch in enumerate(token_batches(lm, corpus, context=16, batch_size=4)):
        acts = lm.run(batch.tokens_BT, read=["embed"], logits=None).acts
        if n == spoilt:
            acts[Site("embed")][2, 5, 3] = float("nan")
        pairs.append((batch, acts))
    return pairs


def test_nothing_is_written_after_an_error(tiny_lm: LanguageModel, corpus: Corpus, tmp_path: Path) -> None:
    pairs = _batches(tiny_lm, corpus, spoilt=1)[:6]
    layout = ShardLayout(tmp_path, 0, 1, torch.float32, tiny_lm.special_ids)
    entered = []
    with pytest.raises(NonFiniteActivations):
        for entry in write_shards(iter(pairs), layout):
            entered.append(entry.file)
    assert entered == ["shard-00000.h5"] == [path.name for path in tmp_path.iterdir()]


def test_an_entry_that_cannot_be_recorded_ends_the_writing(tiny_lm: LanguageModel, corpus: Corpus, tmp_path: Path) -> None:
    pairs = _batches(tiny_lm, corpus, spoilt=-1)[:6]
    shards = write_shards(iter(pairs), ShardLayout(tmp_path, 0, 1, torch.float32, tiny_lm.special_ids))
    assert next(shards).file == "shard-00000.h5"
    time.sleep(0.3)  # the thread may have more shards ready, but waits until the entry is recorded
    shards.close()
    assert [path.name for path in tmp_path.iterdir()] == ["shard-00000.h5"]
    assert not [thread for thread in threading.enumerate() if thread.name == "saekit-shards"]


def test_errors_surface_at_once(tiny_lm: LanguageModel, corpus: Corpus, tmp_path: Path) -> None:
    pairs = _batches(tiny_lm, corpus, spoilt=0)
    given = 0

    def passes() -> Iterator[tuple[TokenBatch, dict[Site, Tensor]]]:
        nonlocal given
        for pair in pairs:
            given += 1
            yield pair
            time.sleep(0.2)

    with pytest.raises(NonFiniteActivations):
        list(write_shards(passes(), ShardLayout(tmp_path, 0, 1, torch.float32, ())))
    assert given <= 5


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_full_disk_keeps_what_was_complete(small_disk: Path, tiny_lm: LanguageModel, corpus: Corpus, tmp_path: Path) -> None:
    whole = write_store(tmp_path / "whole", tiny_lm, ["resid_post.0", "resid_post.1"], corpus, **SETTINGS)
    size = sum(entry.bytes for entry in whole.manifest.shards)
    assert size > 280_000
    path = small_disk / "store"
    with pytest.raises(StorageFull, match=r"No room for shard-\d+.h5 .* run the same command again") as caught:
        write_store(path, tiny_lm, whole.sites, corpus, **SETTINGS)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    store = ActivationStore.open(path, partial=True)
    store.verify(progress=False)
    assert 1 <= len(store.manifest.shards) < len(whole.manifest.shards)
    assert {file.name for file in path.iterdir()} == {"manifest.json", *(entry.file for entry in store.manifest.shards)}
    # Every retry fails in the same way until there is space.
    with pytest.raises(StorageFull):
        write_store(path, tiny_lm, whole.sites, corpus, **SETTINGS)
    assert ActivationStore.open(path, partial=True).n_tokens == store.n_tokens
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    write_store(path, tiny_lm, whole.sites, corpus, **SETTINGS)
    assert files_of(path) == files_of(whole.path)
