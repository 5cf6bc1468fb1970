"""Corpora in random order: every document once, the same order for the same seed, resumable at any document."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saekit.activations import ActivationStore, Corpus, check_corpus, write_store
from saekit.activations.corpus import shuffled
from saekit.activations.corpus.base import CorpusSource
from saekit.activations.corpus.hub import HubCorpus
from saekit.errors import ConfigError, CorpusError, StoreMismatch
from saekit.lm import LanguageModel

TEXTS = [f"w{n} of {n}" for n in range(500)]


def _jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n\n" for text in TEXTS))


def _gz(path: Path) -> None:
    path.write_bytes(gzip.compress("\n".join(TEXTS).encode()))


def _parquet(path: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS, "n": list(range(len(TEXTS)))}), path, row_group_size=70)


def _saved(path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": TEXTS, "n": list(range(len(TEXTS)))}).save_to_disk(str(path), num_shards=3)


WRITERS: dict[str, Callable[[Path], None]] = {"x.jsonl": _jsonl, "x.txt.gz": _gz, "x.parquet": _parquet, "saved": _saved}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("window", [2**26, 1000])
def test_every_document_comes_once_in_an_order_that_the_seed_gives(
    name: str, window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffled, "_WINDOW_BYTES", window)  # 1000 bytes: many passes over the file
    WRITERS[name](tmp_path / name)
    orders = [list(Corpus.open(tmp_path / name, shuffle=seed).documents()) for seed in (0, 0, 1)]
    assert sorted(orders[0]) == sorted(TEXTS) and orders[0] == orders[1] != orders[2]
    # The order depends neither on the size of reads nor on the format.
    assert orders[0] == [TEXTS[n] for n in np.random.default_rng(0).permutation(np.arange(500, dtype=np.uint32))]
    corpus = Corpus.open(tmp_path / name, shuffle=0)
    for start in (0, 1, 137, 499, 500, 600):
        assert list(corpus.documents(start)) == orders[0][start:]
        assert [corpus.document(row, 0) for row in corpus.rows(start)] == orders[0][start:]


def test_the_first_documents_are_from_all_of_a_sorted_corpus() -> None:
    numbers = [int(text.split()[2]) for text in list(Corpus.open(TEXTS, shuffle=3).documents())[:100]]
    counts = np.histogram(numbers, bins=5, range=(0, 500))[0]
    assert counts.min() > 8  # 20 expected in each fifth, with a standard deviation of 3.6


def test_errors_name_the_row_of_the_source(tmp_path: Path) -> None:
    rows = [{"text": "a"}] * 30 + [{"body": "b"}]
    with pytest.raises(CorpusError, match="row 30 has no field 'text'"):
        list(Corpus.open(rows, shuffle=0).documents())
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n' * 10 + "{\n")
    with pytest.raises(CorpusError, match="line 11 is not valid JSON"):
        list(Corpus.open(tmp_path / "x.jsonl", shuffle=0).documents())
    with pytest.raises(CorpusError, match="holds no text"):
        check_corpus(Corpus.open([], shuffle=0))
    with pytest.raises(ConfigError, match="must not be negative"):
        Corpus.open(["a"], shuffle=-1)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("a\n" * 100)
    corpus = Corpus.open(path, shuffle=0)
    assert len(corpus.order) == 100  # type: ignore[attr-defined]
    path.write_text("a\n" * 10)
    with pytest.raises(CorpusError, match="lost documents while it was read"):
        list(corpus.documents())


def test_the_laboratory_is_random_already() -> None:
    with pytest.raises(ConfigError, match="random order already"):
        Corpus.open("lab", shuffle=0)


@pytest.mark.parametrize("streaming", [True, False])
def test_hub_data_sets(streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    _parquet(tmp_path / "data" / "train.parquet")

    def opened(seed: int | None) -> HubCorpus:
        return HubCorpus(CorpusSource(str(tmp_path / "data"), streaming=streaming, shuffle=seed), "0" * 40)

    first, again, other, plain = (list(opened(seed).documents()) for seed in (0, 0, 1, None))
    assert plain == TEXTS and sorted(first) == sorted(TEXTS) and first == again != other and first != plain
    assert list(opened(0).documents(137)) == first[137:]
    assert list(opened(0).unshuffled.documents()) == TEXTS
    prints = [opened(seed).fingerprint() for seed in (None, 0, 1)]
    assert prints[1]["shuffle"] == "0" and "shuffle" not in prints[0] and prints[1] != prints[2]


def test_a_store_of_a_shuffled_corpus_resumes_to_the_same_bytes(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    texts = [" ".join(f"w{(n + i) % 60}" for i in range(n % 17)) for n in range(200)]
    corpus, asked = Corpus.open(texts, shuffle=5), {"context": 16, "batch_size": 4, "shard_tokens": 200, "progress": False}
    whole = write_store(tmp_path / "whole", tiny_lm, ["embed"], corpus, n_tokens=1000, **asked)
    assert whole.provenance["corpus"]["shuffle"] == "5"
    write_store(tmp_path / "again", tiny_lm, ["embed"], corpus, n_tokens=1000, **asked)
    for index in range(1, len(whole.manifest.shards)):
        (tmp_path / "again" / f"shard-{index:05d}.h5").unlink()
    write_store(tmp_path / "again", tiny_lm, ["embed"], Corpus.open(texts, shuffle=5), n_tokens=1000, **asked)
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    for other in (None, 6):
        with pytest.raises(StoreMismatch, match=r"corpus.shuffle is '5', asked was"):
            write_store(tmp_path / "again", tiny_lm, ["embed"], Corpus.open(texts, shuffle=other), n_tokens=1000, **asked)


def test_an_unshuffled_store_is_unchanged(tiny_lm: LanguageModel, tiny_store: ActivationStore, documents: list[str]) -> None:
    assert "shuffle" not in tiny_store.provenance["corpus"]
    asked = {"context": 32, "batch_size": 8, "shard_tokens": 1500, "progress": False}
    again = write_store(tiny_store.path, tiny_lm, ["resid_post.0", "neurons.1"], Corpus.open(documents), **asked)
    assert again.checksums == tiny_store.checksums
