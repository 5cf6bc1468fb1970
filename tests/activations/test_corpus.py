"""Corpora: the same texts from every format, and helpful errors."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saekit.activations import Corpus, check_corpus
from saekit.activations.corpus.base import CORPORA, CorpusSource, UnusedOptions
from saekit.activations.corpus.hub import HubCorpus
from saekit.activations.corpus.memory import MemoryCorpus
from saekit.errors import CorpusError

COMMIT = "0" * 40  # load_dataset ignores it where a folder takes the place of the hub
TEXTS = ["One day.", "", 'Zwei\nZeilen, „Anführung“ und "Kommas", ja', "  spaces  ", "日本語 🙂", "last"]


def _write_jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"n": n, "text": text}, ensure_ascii=n % 2 == 0) + "\n" for n, text in enumerate(texts)))


def _write_json(path: Path, texts: list[str]) -> None:
    path.write_text(json.dumps([{"text": text} for text in texts], indent=2))


def _write_separated(path: Path, texts: list[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if ".tsv" in path.name else ",")
        writer.writerow(["n", "text"])
        writer.writerows([n, text] for n, text in enumerate(texts))


def _write_parquet(path: Path, texts: list[str]) -> None:
    pq.write_table(pa.table({"n": list(range(len(texts))), "text": pa.array(texts, pa.string())}), path, row_group_size=2)


def _compressed(
    write: Callable[[Path, list[str]], None], compress: Callable[[bytes], bytes]
) -> Callable[[Path, list[str]], None]:
    def write_compressed(path: Path, texts: list[str]) -> None:
        write(path, texts)
        path.write_bytes(compress(path.read_bytes()))

    return write_compressed


def _zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


WRITERS: dict[str, Callable[[Path, list[str]], None]] = {
    "x.jsonl": _write_jsonl,
    "x.ndjson": _write_jsonl,
    "x.json": _write_json,
    "lines.json": _write_jsonl,
    "x.csv": _write_separated,
    "x.tsv": _write_separated,
    "x.parquet": _write_parquet,
    "x.jsonl.gz": _compressed(_write_jsonl, gzip.compress),
    "x.jsonl.bz2": _compressed(_write_jsonl, bz2.compress),
    "x.csv.zst": _compressed(_write_separated, _zstd),
}


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")), min_size=1, max_size=8))
def test_texts_come_back_from_every_format(name: str, texts: list[str], tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, texts)
    corpus = Corpus.open(tmp_path / name)
    assert list(corpus.documents()) == texts
    assert list(corpus.documents(2)) == texts[2:]


def test_lines_and_marked_documents_of_plain_text(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a b\r\n\n c \nd")
    assert list(Corpus.open(tmp_path / "lines.txt").documents()) == ["a b", "", "c", "d"]
    (tmp_path / "stories.txt").write_text("One.\nTwo.\n<|endoftext|>\nThree.\n\nFour.<|endoftext|>Five.<|endoftext|>")
    assert list(Corpus.open(tmp_path / "stories.txt").documents()) == ["One.\nTwo.", "Three.\n\nFour.", "Five.", ""]


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    _write_jsonl(tmp_path / "b.jsonl", ["2", "3"])
    (tmp_path / "a").mkdir()
    _write_parquet(tmp_path / "a" / "z.parquet", ["0", "1"])
    (tmp_path / "notes.md").write_text("not text of the corpus")
    (tmp_path / ".hidden.jsonl").write_text("broken")
    assert list(Corpus.open(tmp_path).documents()) == ["0", "1", "2", "3"]


def test_a_folder_saved_by_datasets(tmp_path: Path) -> None:
    import datasets

    splits = {
        name: datasets.Dataset.from_dict({"text": [f"{name} {n}" for n in range(7)], "n": list(range(7))})
        for name in ("train", "test")
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"), num_shards={"train": 2, "test": 1})
    assert list(Corpus.open(tmp_path / "saved", split="test").documents()) == splits["test"]["text"]
    assert list(Corpus.open(tmp_path / "saved" / "train").documents(3)) == splits["train"]["text"][3:]
    with pytest.raises(CorpusError, match=r"no split 'valid'; it has test, train"):
        Corpus.open(tmp_path / "saved", split="valid")
    (arrow,) = (tmp_path / "saved" / "test").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[: arrow.stat().st_size // 2])
    for source, split in ((tmp_path / "saved", "test"), (arrow, "train")):
        with pytest.raises(CorpusError, match=r"arrow cannot be read: it does not end as an arrow stream does"):
            list(Corpus.open(source, split=split).documents())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, r"it has no splits\. Leave out --data-split\."),
        ({"name": "en"}, r"it has no configurations\. Leave out --data-config\."),
        ({"revision": "v1"}, r"it has no revisions\. Leave out --data-revision\."),
        ({"split": "x", "revision": "v1"}, r"no splits and no revisions\. Leave out --data-split and --data-revision\."),
    ],
)
def test_options_that_a_source_does_not_have(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    import datasets

    (tmp_path / "x.txt").write_text("a")
    (tmp_path / "y.txt").write_text("b")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "one"))
    for source, kind in (("x.txt", "a local file"), ("", "a local folder"), ("one", "a local folder")):
        with pytest.raises(UnusedOptions, match=f"{kind}: .*{message}"):
            Corpus.open(tmp_path / source, **options)
    files = {str(tmp_path / name): 0.5 for name in ("x.txt", "y.txt")}
    with pytest.raises(UnusedOptions, match=r"x.txt, .*y.txt have no"):
        Corpus.open(files, **options)
    if "split" not in options:
        with pytest.raises(UnusedOptions, match="lab is the built-in corpus: it has no"):
            Corpus.open("lab", **options)


def test_options_of_a_mixture_are_for_the_sources_that_have_them(tmp_path: Path) -> None:
    import datasets

    (tmp_path / "x.txt").write_text("a")
    splits = {name: datasets.Dataset.from_dict({"text": [name]}, split=name) for name in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    mixed = Corpus.open({str(tmp_path / "x.txt"): 0.5, str(tmp_path / "saved"): 0.5}, split="test")
    assert list(mixed.documents()) == ["a", "test"]
    splits["test"].save_to_disk(str(tmp_path / "alone"))
    assert list(Corpus.open(tmp_path / "alone", split="test").documents()) == ["test"]


def test_rows_in_memory() -> None:
    records = [{"body": text, "text": None} for text in TEXTS]
    assert list(Corpus.open(records, text_field="body").documents(1)) == TEXTS[1:]
    assert list(Corpus.open(records).documents()) == [""] * len(TEXTS)
    generated = Corpus.open(text for text in TEXTS)
    assert list(generated.documents()) == list(generated.documents()) == TEXTS
    # Half of a surrogate pair, which occurs in JSON files, is not valid text.
    assert list(Corpus.open([json.loads('"a\\ud83d"')]).documents()) == ["a?"]


def test_fingerprints_tell_contents_apart(tmp_path: Path) -> None:
    _write_jsonl(tmp_path / "a.jsonl", TEXTS)
    _write_jsonl(tmp_path / "b.jsonl", TEXTS)
    _write_jsonl(tmp_path / "c.jsonl", [*TEXTS[:-1], "other"])
    prints = [Corpus.open(tmp_path / name).fingerprint() for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    assert prints[0] == prints[1] != prints[2]
    assert Corpus.open(tmp_path / "a.jsonl", text_field="n").fingerprint() != prints[0]
    assert Corpus.open(["ab", "c"]).fingerprint() == Corpus.open(iter(["ab", "c"])).fingerprint()
    assert Corpus.open(["ab", "c"]).fingerprint() != Corpus.open(["a", "bc"]).fingerprint()
    folder = Corpus.open(tmp_path).fingerprint()
    (tmp_path / "c.jsonl").rename(tmp_path / "0.jsonl")  # another order of documents
    assert Corpus.open(tmp_path).fingerprint() != folder


@pytest.mark.parametrize("streaming", [True, False])
def test_hub_data_sets_through_load_dataset(tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # load_dataset accepts a folder laid out like a hub repository. Only the download is not tested.
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "owner" / "data"
    (data / "small").mkdir(parents=True)
    _write_parquet(data / "small" / "train.parquet", TEXTS)
    _write_parquet(data / "small" / "test.parquet", ["held"])
    (data / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files:\n  - split: train\n    path: small/train.parquet\n"
        "  - split: test\n    path: small/test.parquet\n- config_name: other\n  data_files: small/test.parquet\n---\n"
    )
    asked = CorpusSource(str(data), name="small", streaming=streaming)
    corpus = HubCorpus(asked, COMMIT)
    assert list(corpus.documents()) == TEXTS
    assert list(corpus.documents(4)) == TEXTS[4:]
    assert list(HubCorpus(replace(asked, split="test"), COMMIT).documents()) == ["held"]
    assert corpus.fingerprint() == {
        "hub": str(data),
        "config": "small",
        "split": "train",
        "revision": COMMIT,
        "text_field": "text",
    }
    with pytest.raises(CorpusError, match=r"row 0 has no field 'body'; it has 'n', 'text'"):
        check_corpus(HubCorpus(replace(asked, text_field="body"), COMMIT))
    with pytest.raises(CorpusError, match="nosuch"):
        check_corpus(HubCorpus(replace(asked, name="nosuch"), COMMIT))
    with pytest.raises(CorpusError, match="nosuch"):
        check_corpus(HubCorpus(replace(asked, split="nosuch"), COMMIT))


def test_the_hub_out_of_reach() -> None:
    # tests/conftest.py sets HF_HUB_OFFLINE.
    with pytest.raises(CorpusError, match="is not in the cache, and HF_HUB_OFFLINE is set"):
        check_corpus(Corpus.open("owner/no-such-data-set"))


def test_bad_sources(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.bin").write_bytes(b"\0")
    for source, message in [
        ("./nowhere", "no file or folder './nowhere'"),
        ("nowhere.jsonl", "no file or folder 'nowhere.jsonl'"),
        (tmp_path / "nowhere", "no file or folder"),
        (tmp_path / "empty", "holds no file of a known format"),
        (tmp_path / "x.bin", "is not a file of a known format"),
        ({"text": ["a"]}, "A dict is no corpus"),
        (b"text", "A bytes is no corpus"),
    ]:
        with pytest.raises(CorpusError, match=message):
            Corpus.open(source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', r"line 2 is not valid JSON"),
        ("x.jsonl", b'{"text": "a"}\n{"body": "b"}\n', r"row 1 has no field 'text'; it has 'body'.*--text-field"),
        ("x.jsonl", b'{"text": ["a", "b"]}\n', r"row 0 holds a list, not text"),
        ("x.json", b'[{"text": "a"', "not valid JSON"),
        ("x.txt", b"caf\xe9\n", "not UTF-8"),
        ("x.parquet", b"no parquet", "cannot be read"),
        ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 10_000)[:-40], "cannot be read"),
        ("x.txt", b"", "holds no text"),
        ("x.txt", b"\n \n", "holds no text"),
        ("x.json", b"[]", "holds no text.*--data-split.*--text-field"),
        ("x.csv", b"body\na\n", "no field 'text'; it has 'body'"),
    ],
)
def test_bad_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        check_corpus(Corpus.open(tmp_path / name))
        list(Corpus.open(tmp_path / name).documents())


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.json", "array.json", "x.csv", "x.tsv", "x.jsonl.gz"])
def test_a_byte_order_mark_is_no_text(name: str, tmp_path: Path) -> None:
    plain = {
        ".txt": "one\ntwo\n",
        ".jsonl": '{"text": "one"}\n{"text": "two"}\n',
        ".csv": "text,n\none,1\ntwo,2\n",
        ".tsv": "text\tn\none\t1\ntwo\t2\n",
    }
    kind = ".jsonl" if name in ("x.json", "x.jsonl.gz") else Path(name).suffix
    content = '[{"text": "one"}, {"text": "two"}]' if name == "array.json" else plain[kind]
    data = b"\xef\xbb\xbf" + content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert list(Corpus.open(tmp_path / name).documents()) == ["one", "two"]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "array.json"])
def test_deep_nesting_is_a_typed_error(name: str, tmp_path: Path) -> None:
    deep = "[" * 10**5 + "]" * 10**5
    (tmp_path / name).write_text(deep if name == "array.json" else f'{{"text": "a"}}\n{{"text": {deep}}}\n')
    with pytest.raises(CorpusError, match=r"array.json is nested too deeply|line 2 is nested too deeply"):
        list(Corpus.open(tmp_path / name).documents())


@pytest.mark.parametrize("value", ["5", "true", "1.5", '{"a": "b"}', "[]", '[["a"]]'])
def test_text_fields_of_other_types_are_typed_errors(value: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(f'{{"text": {value}}}\n')
    with pytest.raises(
        CorpusError, match=r"row 0 holds (a whole number|true or false|a number|an object|a list), not text.*--text-field"
    ):
        list(Corpus.open(tmp_path / "x.jsonl").documents())
    (tmp_path / "x.jsonl").write_text(value + "\n")
    with pytest.raises(CorpusError, match=r"row 0 (holds .*, not text|has no field 'text').*--text-field"):
        list(Corpus.open(tmp_path / "x.jsonl").documents())


def test_a_kind_of_corpus_can_be_registered(tmp_path: Path) -> None:
    def open_numbers(asked: CorpusSource) -> Corpus | None:
        name = str(asked.source)
        return MemoryCorpus(map(str, range(int(name[8:]))), asked.text_field) if name.startswith("numbers:") else None

    CORPORA.register("numbers", open_numbers)
    try:
        assert list(Corpus.open("numbers:3").documents()) == ["0", "1", "2"]
        assert list(Corpus.open(["a"]).documents()) == ["a"]
    finally:
        CORPORA.unregister("numbers")
    with pytest.raises(CorpusError, match="numbers:3"):
        check_corpus(Corpus.open("numbers:3"))
