"""Damaged and malicious stores: typed errors, before anything is read or allocated."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from saekit.activations import ActivationReader, ActivationStore, Corpus, write_store
from saekit.activations.store.manifest import Manifest
from saekit.checksums import read_sealed, seal
from saekit.errors import SaekitError, StoreCorrupt
from saekit.lm import LanguageModel
from tests.kit.tiny import make_documents


@pytest.fixture
def copy(tiny_store: ActivationStore, tmp_path: Path) -> Path:
    shutil.copytree(tiny_store.path, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80, 0xFF])
def test_a_change_of_any_byte_of_the_manifest_is_found(mask: int, copy: Path) -> None:
    path = copy / "manifest.json"
    whole = path.read_bytes()
    for index in range(len(whole)):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ mask]) + whole[index + 1 :])
        with pytest.raises(SaekitError):
            Manifest.load(copy)
    path.write_bytes(whole)
    Manifest.load(copy)


def test_a_manifest_that_lost_bytes_or_has_more_is_found(copy: Path) -> None:
    path = copy / "manifest.json"
    whole = path.read_bytes()
    for changed in (whole[:-1], whole[1:], whole + b" ", whole.replace(b"\n", b"\r\n"), whole[: len(whole) // 2], b""):
        path.write_bytes(changed)
        with pytest.raises(StoreCorrupt, match=r"manifest.json is damaged"):
            Manifest.load(copy)


def test_a_manifest_of_an_earlier_version_has_no_checksum_and_opens(copy: Path) -> None:
    path = copy / "manifest.json"
    fields = json.loads(path.read_text())
    del fields["checksum"]
    path.write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n")
    assert ActivationStore.open(copy).n_tokens == fields["n_tokens"]


def test_a_sealed_manifest_is_read_back(tmp_path: Path) -> None:
    fields, path = {"a": [1, 2.5, None, "0" * 64, "ü"], "b": {"checksum": "0" * 64}}, tmp_path / "x.json"
    for indent in (1, None):
        path.write_bytes(seal(fields, indent=indent))
        assert read_sealed(path, ["a", "b"], error=StoreCorrupt, hint="") == fields
        with pytest.raises(StoreCorrupt, match="unknown entry 'b'"):
            read_sealed(path, ["a"], error=StoreCorrupt, hint="")


EVIL: dict[str, Callable[[dict[str, Any]], Any]] = {
    "more tokens than bytes": lambda m: (m["shards"][0].update(tokens=10**15), m.update(n_tokens=_sum(m))),
    "a huge site": lambda m: m["provenance"]["sites"].update({"resid_post.0": 10**12}),
    "negative tokens": lambda m: m["shards"][0].update(tokens=-1),
    "tokens as text": lambda m: m["shards"][0].update(tokens="12"),
    "true as a number": lambda m: m["shards"][0].update(tokens=True),
    "a path elsewhere": lambda m: m["shards"][0].update(file="../../secret.h5"),
    "the same shard twice": lambda m: m["shards"][1].update(m["shards"][0]),
    "no provenance": lambda m: m.update(provenance=None),
    "sites as a list": lambda m: m["provenance"].update(sites=["resid_post.0"]),
    "no site": lambda m: m["provenance"].update(sites={}),
    "an unknown site": lambda m: m["provenance"].update(sites={"nowhere": 4}),
    "context as text": lambda m: m["provenance"].update(context="32"),
    "an unknown dtype": lambda m: m["provenance"].update(dtype="object"),
    "a place that is none": lambda m: m["shards"][0].update(after=[1, 2, 3]),
    "a place of texts": lambda m: m["shards"][0].update(after=["a", "b"]),
    "shards as a number": lambda m: m.update(shards=5),
    "complete as text": lambda m: m.update(complete="yes"),
    "an unknown entry": lambda m: m.update(more=1),
    "deep nesting": lambda m: m["provenance"].update(model={"a": [[[[]]]]}),
}


def _sum(manifest: dict[str, Any]) -> int:
    return sum(shard["tokens"] for shard in manifest["shards"])


@pytest.mark.parametrize("what", EVIL)
@pytest.mark.parametrize("sealed", [True, False])
def test_manifests_with_impossible_entries(what: str, sealed: bool, copy: Path) -> None:
    path = copy / "manifest.json"
    fields = json.loads(path.read_text())
    del fields["checksum"]
    EVIL[what](fields)
    path.write_bytes(seal(fields) if sealed else json.dumps(fields).encode())
    with pytest.raises(StoreCorrupt, match=r"manifest.json is damaged: .* Restore it"):
        ActivationStore.open(copy)


@pytest.mark.parametrize("data", [b"[" * 10**5, b'{"a":' * 10**5, b"[]", b"\xff\xfe", b"1" * 10**4, b"null"])
def test_files_that_are_not_manifests(data: bytes, copy: Path) -> None:
    (copy / "manifest.json").write_bytes(data)
    with pytest.raises(StoreCorrupt, match=r"damaged|nested|holds"):
        ActivationStore.open(copy)


def _as_large(path: Path, make: Callable[[h5py.File, int], None]) -> None:
    """Replace the shard `path` by one that `make` writes, padded to the size in the manifest."""
    size = path.stat().st_size
    with h5py.File(path, "r", locking=False) as file:
        columns = {name: file[name][:] for name in ("tokens", "position", "document", "special")}
        rows = len(columns["tokens"])
    path.unlink()
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            file[name] = column
        make(file, rows)
    os.truncate(path, size)


SHARDS: dict[str, tuple[Callable[[h5py.File, int], None], str]] = {
    "more rows than declared": (lambda f, n: _sites(f, (2**40, 16), chunks=(1, 16)), "is .* not"),
    "a huge chunk": (lambda f, n: _sites(f, (n, 16), chunks=(2**27, 16), maxshape=(None, 16)), "has chunks"),
    "compressed": (lambda f, n: _sites(f, (n, 16), chunks=(n, 16), compression="gzip"), "is not stored plainly"),
    "stored elsewhere": (lambda f, n: _sites(f, (n, 16), external=[("/etc/passwd", 0, n * 64)]), "is not stored plainly"),
    "a link to another file": (
        lambda f, n: f.create_group("sites").__setitem__("resid_post.0", h5py.ExternalLink("other.h5", "x")),
        "is a link",
    ),
    "a link within": (
        lambda f, n: f.create_group("sites").__setitem__("resid_post.0", h5py.SoftLink("/tokens")),
        "is a link",
    ),
    "a group": (lambda f, n: f.create_group("sites/resid_post.0"), "is not a dataset"),
    "nothing": (lambda f, n: None, "is missing"),
    "other numbers": (lambda f, n: f.create_dataset("sites/resid_post.0", (n, 16), "float64"), "is .* not"),
}


def _sites(file: h5py.File, shape: tuple[int, int], **settings: Any) -> None:
    file.create_dataset("sites/resid_post.0", shape, np.float32, **settings)


@pytest.mark.parametrize("what", SHARDS)
def test_shards_that_would_make_the_reader_allocate_or_read_elsewhere(what: str, tmp_path: Path, tiny_lm: LanguageModel) -> None:
    corpus = Corpus.open(make_documents(40))
    store = write_store(tmp_path / "a", tiny_lm, ["resid_post.0"], corpus, context=32, progress=False)
    make, message = SHARDS[what]
    _as_large(store.path / "shard-00000.h5", make)
    opened = ActivationStore.open(store.path)
    with pytest.raises(StoreCorrupt, match=f"shard-00000.h5: sites/resid_post.0 {message}"):
        ActivationReader(opened, ["resid_post.0"], batch_size=8)


def test_a_mutated_shard_is_a_typed_error_or_reads(copy: Path) -> None:
    path, generator = copy / "shard-00001.h5", np.random.default_rng(0)
    whole = path.read_bytes()
    for _ in range(60):
        data = bytearray(whole)
        for index in generator.integers(0, 4096, 8).tolist():  # the structures of HDF5 are at the beginning
            data[index] = int(generator.integers(256))
        path.write_bytes(data)
        try:
            list(ActivationStore.open(copy).stream(["resid_post.0"]))
        except StoreCorrupt:
            continue
