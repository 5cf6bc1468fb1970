"""Stores hold the activations of the model, and detect every mismatch or damage."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from saekit.activations import ActivationReader, ActivationStore, Corpus, LiveActivations, token_batches, write_store
from saekit.activations.store.shard import ShardBuilder
from saekit.errors import ConfigError, ContextTooLong, CorpusError, StoreCorrupt, StoreMismatch, UnknownSite
from saekit.lm import LanguageModel, Site
from tests.kit.tiny import make_documents, make_lm

SITES = ["embed", "q.0", "k.1", "heads.0", "attn_out.1", "resid_mid.0", "neurons.1", "resid_post.0", "resid_post.1"]


def _stored(store: ActivationStore, site: str) -> Tensor:
    return torch.cat([block.acts[Site.parse(site)] for block in store.stream([site])])


@pytest.mark.parametrize("packing", ["pack", "document"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_stored_is_what_the_model_computes(packing: Any, dtype: str, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    corpus = Corpus.open(make_documents(60, seed=3))
    settings = {"context": 20, "batch_size": 5, "packing": packing, "n_tokens": 777}
    store = write_store(tmp_path / "store", tiny_lm, SITES, corpus, dtype=dtype, shard_tokens=200, progress=False, **settings)
    store.verify(progress=False)
    assert store.n_tokens == 777
    assert store.sites == sorted(map(Site.parse, SITES))
    assert len(store.manifest.shards) >= 3
    batches = list(token_batches(tiny_lm, corpus, **settings))
    blocks = list(store.stream(SITES))
    for column in ("tokens", "position", "document"):
        expected = torch.cat([getattr(batch, f"{column}_BT")[batch.mask_BT] for batch in batches])
        assert torch.equal(torch.cat([getattr(block, f"{column}_N") for block in blocks]).long(), expected)
    tokens = torch.cat([block.tokens_N for block in blocks])
    assert torch.equal(
        torch.cat([block.special_N for block in blocks]), torch.isin(tokens, torch.tensor(sorted(tiny_lm.special_ids)))
    )

    # transformers itself, one context at a time, without pads.
    hidden: dict[str, list[Tensor]] = {"embed": [], "resid_post.0": []}
    exact: dict[str, list[Tensor]] = {site: [] for site in SITES}
    for batch in batches:
        run = tiny_lm.run(batch.tokens_BT, read=SITES, logits=None)
        for site in SITES:
            exact[site].append(run[site].flatten(2)[batch.mask_BT])
        for tokens_T, mask_T in zip(batch.tokens_BT, batch.mask_BT):
            with torch.no_grad():
                states = tiny_lm.model(tokens_T[mask_T][None], output_hidden_states=True).hidden_states
            hidden["embed"].append(states[0][0])
            hidden["resid_post.0"].append(states[1][0])
    for site in SITES:
        assert torch.equal(_stored(store, site), torch.cat(exact[site]).to(getattr(torch, dtype)).float()), site
        assert store.width(site) == tiny_lm.width(site) == exact[site][0].shape[1]
    tolerance = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}[dtype]
    for site, rows in hidden.items():
        assert torch.allclose(_stored(store, site), torch.cat(rows), rtol=tolerance, atol=tolerance)


def test_layout_on_disk(tiny_store: ActivationStore) -> None:
    manifest = json.loads((tiny_store.path / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"], manifest["complete"]) == ("saekit-activations", 1, True)
    assert manifest["n_tokens"] == tiny_store.n_tokens == sum(shard["tokens"] for shard in manifest["shards"])
    for shard in manifest["shards"]:
        path = tiny_store.path / shard["file"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == shard["sha256"]
        with h5py.File(path, locking=False) as file:
            assert file["sites/neurons.1"].shape == (shard["tokens"], 24)
            assert file["sites/neurons.1"].attrs["dtype"] == "float32"
            assert file["tokens"].shape == file["position"].shape == file["document"].shape == (shard["tokens"],)
            assert file["position"][0] == 0


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 499), max_size=6, unique=True).map(sorted), n=st.sampled_from([500, 512, 3]))
def test_a_shard_does_not_depend_on_the_size_of_appends(cuts: list[int], n: int) -> None:
    width = 2**11  # 128 rows per chunk
    columns = {
        "tokens": np.arange(n, dtype=np.int32),
        "position": np.arange(n, dtype=np.int32),
        "document": np.arange(n, dtype=np.int64) // 7,
        "special": np.arange(n) % 16 == 0,
        "sites/embed": np.arange(n * width, dtype=np.float32).reshape(n, width),
    }
    images = []
    for ends in ([n], [*(cut for cut in cuts if cut < n), n]):
        builder = ShardBuilder(bfloat16=False)
        for start, stop in zip([0, *ends[:-1]], ends):
            builder.append({name: column[start:stop] for name, column in columns.items()})
        images.append(bytes(builder.finish()))
    assert images[0] == images[1]
    with h5py.File(io.BytesIO(images[0])) as file:
        assert all(np.array_equal(file[name], column) for name, column in columns.items())
        assert file["sites/embed"].chunks == (min(n, 128), width)


def test_chunks_of_a_mebibyte_and_bfloat16_bits(tmp_path: Path) -> None:
    lm = make_lm(d_model=256)
    corpus = Corpus.open(make_documents(300))
    store = write_store(tmp_path / "a", lm, ["resid_post.0"], corpus, dtype="bfloat16", context=64, progress=False)
    with h5py.File(tmp_path / "a" / "shard-00000.h5", locking=False) as file:
        data = file["sites/resid_post.0"]
        assert data.chunks == (2048, 256)
        assert len(data) > 2 * 2048
        assert (data.dtype, data.attrs["dtype"]) == (np.uint16, "bfloat16")
        decoded = (data[:].astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(decoded, _stored(store, "resid_post.0").numpy())


@settings(max_examples=40, deadline=None)
@given(batch_tokens=st.integers(1, 3000), stop_at=st.integers(0, 400))
def test_blocks_are_whole_contexts_and_resume_anywhere(tiny_store: ActivationStore, batch_tokens: int, stop_at: int) -> None:
    blocks = list(tiny_store.stream(["resid_post.0"], batch_tokens=batch_tokens))
    assert [block.start for block in blocks] == [0, *(block.stop for block in blocks[:-1])]
    assert blocks[-1].stop == tiny_store.n_tokens
    begins = {0, *np.cumsum([entry.tokens for entry in tiny_store.manifest.shards]).tolist()}
    for block, after in zip(blocks, [*blocks[1:], None]):
        assert block.position_N[0] == 0
        contexts = int((block.position_N == 0).sum())
        assert len(block.tokens_N) <= batch_tokens or contexts == 1
        # A block has as many contexts as fit, unless the shard ends.
        if after is not None and block.stop not in begins:
            following = after.position_N[1:].eq(0).nonzero()
            first = int(following[0]) + 1 if len(following) else len(after.position_N)
            assert len(block.tokens_N) + first > batch_tokens
    k = min(stop_at, len(blocks) - 1)
    again = list(tiny_store.stream(["resid_post.0"], batch_tokens=batch_tokens, start=blocks[k].start))
    assert [block.start for block in again] == [block.start for block in blocks[k:]]
    assert all(
        torch.equal(a.acts[Site.parse("resid_post.0")], b.acts[Site.parse("resid_post.0")]) for a, b in zip(again, blocks[k:])
    )


def test_streams_without_sites_and_abandoned_ones(tiny_store: ActivationStore) -> None:
    assert sum(len(block.tokens_N) for block in tiny_store.stream([])) == tiny_store.n_tokens
    stream = tiny_store.stream(["neurons.1"], batch_tokens=10)
    next(stream)
    del stream  # its thread must end
    with pytest.raises(UnknownSite, match=r"no activations at resid_post.1; it has resid_post.0, neurons.1"):
        tiny_store.stream(["resid_post.1"])


def _in_bfloat16() -> LanguageModel:
    lm = make_lm()
    lm.model.to(torch.bfloat16)
    return lm


DIFFERENT: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "sites": (
        lambda: {"sites": ["resid_post.1"]},
        r"sites.resid_post.0 is 16, asked was None; sites.resid_post.1 is None, asked was 16",
    ),
    "corpus": (lambda: {"corpus": Corpus.open(["w1 w2"])}, r"corpus.sha256 is '\w+', asked was '\w+'"),
    "context": (lambda: {"context": 8}, r"context is 16, asked was 8"),
    "packing": (lambda: {"packing": "document"}, r"packing is 'pack', asked was 'document'"),
    "dtype": (lambda: {"dtype": "float16"}, r"dtype is 'float32', asked was 'float16'"),
    "n_tokens": (lambda: {"n_tokens": 50}, r"n_tokens is 100, asked was 50"),
    "model": (lambda: {"lm": make_lm(seed=1)}, r"model.sha256 is '\w+', asked was '\w+'"),
    "tokenizer": (lambda: {"lm": make_lm(bos=False)}, r"model.tokenizer is '\w+', asked was '\w+'"),
    "computing": (lambda: {"lm": _in_bfloat16()}, r"model.dtype is 'float32', asked was 'bfloat16'"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_store_of_something_else_is_refused(what: str, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    asked = {"lm": tiny_lm, "sites": ["resid_post.0"], "corpus": Corpus.open(make_documents(20)), "context": 16, "n_tokens": 100}
    write_store(tmp_path / "a", **asked, progress=False)
    before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    change, message = DIFFERENT[what]
    with pytest.raises(StoreMismatch, match=message):
        write_store(tmp_path / "a", **{**asked, **change()}, progress=False)
    assert {path: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before


def test_the_first_token_of_a_context_is_special_even_without_bos(tmp_path: Path) -> None:
    lm, corpus = make_lm(bos=False), Corpus.open(make_documents(60))
    store = write_store(tmp_path / "a", lm, ["resid_post.0"], corpus, context=16, progress=False)
    blocks = list(store.stream([]))
    tokens, position, special = (
        torch.cat([getattr(block, name) for block in blocks]) for name in ("tokens_N", "position_N", "special_N")
    )
    assert torch.equal(special, (position == 0) | torch.isin(tokens, torch.tensor(sorted(lm.special_ids))))
    assert 0 not in tokens and int((position == 0).sum()) > 10
    settings = {"batch_size": 32, "split": "all"}
    live = LiveActivations(lm, ["resid_post.0"], corpus, context=16, **settings)
    reader = ActivationReader(store, ["resid_post.0"], **settings)
    assert live.n_tokens == reader.n_tokens == int((~special).sum())


def test_check_model(tiny_lm: LanguageModel, tiny_store: ActivationStore) -> None:
    tiny_store.check_model(tiny_lm)
    tiny_store.check_model(make_lm())
    with pytest.raises(StoreMismatch, match=r"activations of tiny \(sha256 \w{12}\), not of tiny \(\w{12}\)"):
        tiny_store.check_model(make_lm(seed=1))
    with pytest.raises(StoreMismatch, match="tokenizer"):
        tiny_store.check_model(make_lm(bos=False))
    louder = make_lm()
    with torch.no_grad():
        louder.blocks[1].mlp.down_proj.weight.mul_(1.05)  # type: ignore[union-attr,operator]
    with pytest.raises(StoreMismatch, match="other weights"):
        tiny_store.check_model(louder)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"sites": []}, ConfigError, "No site"),
        ({"sites": ["resid_post.2"]}, UnknownSite, "no layer 2"),
        ({"sites": ["pattern.0"]}, UnknownSite, "no fixed width"),
        ({"dtype": "int8"}, ConfigError, "cannot be stored as 'int8'. Choose one of float32, float16, bfloat16"),
        ({"context": 65}, ContextTooLong, "65 tokens"),
        ({"n_tokens": -1}, ConfigError, "n_tokens is -1"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"shard_tokens": 0}, ConfigError, "shard_tokens is 0"),
        ({"corpus": Corpus.open([])}, CorpusError, "holds no text"),
        ({"corpus": Corpus.open([{"body": "w1"}])}, CorpusError, "no field 'text'; it has 'body'"),
        ({"corpus": Corpus.open(["w1", {"body": "w1"}])}, CorpusError, "row 1 has no field 'text'"),
    ],
)
def test_what_cannot_be_done_leaves_nothing(
    settings: dict, error: type, message: str, tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    asked = {"sites": ["resid_post.0"], "corpus": Corpus.open(["w1"]), "progress": False, **settings}
    with pytest.raises(error, match=message):
        write_store(tmp_path / "a", tiny_lm, **asked)
    assert not (tmp_path / "a").exists()


def test_fewer_tokens_than_asked_are_stored_once(
    tiny_lm: LanguageModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = Corpus.open(make_documents(20))
    available = sum(batch.n_tokens for batch in token_batches(tiny_lm, corpus, context=16))
    store = write_store(tmp_path / "a", tiny_lm, ["embed"], corpus, n_tokens=10**6, context=16, progress=False)
    assert store.n_tokens == available
    assert f"only {available} of the 1000000 tokens asked for" in caplog.text
    assert store.provenance["n_tokens"] == 10**6


# Damage


@pytest.fixture
def copy(tiny_store: ActivationStore, tmp_path: Path) -> Path:
    shutil.copytree(tiny_store.path, tmp_path / "copy")
    return tmp_path / "copy"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shard=st.integers(0, 3), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_verify_finds_every_flipped_bit(copy: Path, shard: int, where: float, bit: int) -> None:
    path = copy / f"shard-{shard:05d}.h5"
    whole = path.read_bytes()
    data = bytearray(whole)
    data[int(where * len(data))] ^= 1 << bit
    path.write_bytes(data)
    try:
        with pytest.raises(StoreCorrupt, match=rf"shard-{shard:05d}.h5 has changed .* run the same cache command"):
            ActivationStore.open(copy).verify(progress=False)
    finally:
        path.write_bytes(whole)
    ActivationStore.open(copy).verify(progress=False)


def test_a_flipped_shard_is_mended(copy: Path, tiny_lm: LanguageModel, documents: list[str]) -> None:
    path = copy / "shard-00001.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[:2000] + b"\xff" + whole[2001:])
    with pytest.raises(StoreCorrupt, match="move it away"):
        ActivationStore.open(copy).verify(progress=False)
    path.unlink()
    asked = {"context": 32, "batch_size": 8, "shard_tokens": 1500, "progress": False}
    write_store(copy, tiny_lm, ["resid_post.0", "neurons.1"], Corpus.open(documents), **asked).verify(progress=False)
    assert path.read_bytes() == whole


def test_a_shard_that_fits_its_checksum_but_not_the_manifest(copy: Path) -> None:
    first, second = copy / "shard-00000.h5", copy / "shard-00001.h5"
    with h5py.File(first, "a", locking=False) as file:
        del file["position"]
    _edit(copy, lambda manifest: manifest["shards"][0].update(_facts(first)))
    with pytest.raises(StoreCorrupt, match=r"shard-00000.h5: position is missing"):
        ActivationStore.open(copy).verify(progress=False)
    shutil.copy(second, first)
    _edit(copy, lambda manifest: (manifest["shards"][0].update(_facts(first), tokens=7), _recount(manifest)))
    with pytest.raises(StoreCorrupt, match=r"shard-00000.h5: tokens is \(\d+,\) int32, not \(7,\) int32"):
        ActivationStore.open(copy).verify(progress=False)


def _recount(manifest: dict[str, Any]) -> None:
    manifest["n_tokens"] = sum(shard["tokens"] for shard in manifest["shards"])


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    manifest.pop("checksum", None)  # as earlier versions wrote it
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_damage_while_reading_is_a_typed_error(copy: Path) -> None:
    store = ActivationStore.open(copy)
    path = copy / "shard-00002.h5"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(StoreCorrupt, match=r"shard-00002.h5 cannot be read"):
        list(store.stream(["resid_post.0"]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m.update(version=2), StoreMismatch, "format version 2; this saekit reads up to 1. Upgrade"),
        (lambda m: m.update(version="x"), StoreCorrupt, "not the manifest of an activation store"),
        (lambda m: m.update(format="other"), StoreCorrupt, "not the manifest of an activation store"),
        (lambda m: m.pop("shards"), StoreCorrupt, "damaged"),
        (lambda m: m["shards"][0].pop("sha256"), StoreCorrupt, "damaged"),
        (lambda m: m.update(complete=False), StoreCorrupt, "unfinished"),
    ],
)
def test_bad_manifests(change: Callable, error: type, message: str, copy: Path) -> None:
    _edit(copy, change)
    with pytest.raises(error, match=message):
        ActivationStore.open(copy)


def test_no_store_at_all(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(StoreCorrupt, match=r"holds no activations: it has no manifest.json"):
            ActivationStore.open(path)
    (tmp_path / "manifest.json").write_text('{"format": "saekit-act')
    with pytest.raises(StoreCorrupt, match="damaged"):
        ActivationStore.open(tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    corpus, asked = Corpus.open(make_documents(200)), {"context": 20, "batch_size": 5, "progress": False}
    lm = make_lm()
    lm.model.to("cuda")
    for packing in ("pack", "document"):
        there, here = (
            write_store(tmp_path / f"{name} {packing}", which, SITES, corpus, shard_tokens=300, packing=packing, **asked)
            for name, which in (("there", lm), ("here", tiny_lm))
        )
        there.verify(progress=False)
        for site in SITES:
            assert torch.allclose(_stored(there, site), _stored(here, site), rtol=1e-3, atol=1e-4)


def test_a_pretrained_model(stories_lm: LanguageModel, tinystories_path: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(tinystories_path)
    store = write_store(tmp_path / "a", stories_lm, ["resid_post.2"], corpus, n_tokens=5000, dtype="bfloat16", progress=False)
    assert store.n_tokens == 5000
    assert store.context == 256
    first = next(iter(store.stream(["resid_post.2"], batch_tokens=256)))
    with torch.no_grad():
        states = stories_lm.model(first.tokens_N.long()[None], output_hidden_states=True).hidden_states[3][0]
    assert torch.allclose(first.acts[Site.parse("resid_post.2")], states, rtol=0.01, atol=0.02)
    # Activations at BOS have a much larger norm, so the store marks them as special.
    norms = first.acts[Site.parse("resid_post.2")].norm(dim=1)
    assert norms[first.special_N].min() > 1.5 * norms[~first.special_N].median()
