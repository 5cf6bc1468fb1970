"""What is read of a record: conditions, joined fields, token ids; and errors that name the row."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saekit.activations import Corpus, check_corpus, token_batches, write_store
from saekit.activations.corpus.documents import CONTENTS
from saekit.activations.corpus.fields import Fields
from saekit.activations.corpus.where import Condition
from saekit.errors import ConfigError, CorpusError, StoreMismatch
from saekit.lm import LanguageModel
from tests.kit.tiny import make_lm

ROWS = [
    {"text": "w1 w2", "lang": "en", "score": 0.5, "tags": ["a", "b"], "meta": {"source": "web", "n": [1, 2]}},
    {"text": "w3", "lang": "de", "score": None, "tags": [], "meta": None},
    {"text": "w4 w5 w6", "lang": "EN", "score": 3.0, "tags": ["b"], "meta": {"source": "book", "n": [3, 4]}},
]


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ('lang == "en"', [0]),
        ('lower(lang) == "en" and len(text) > 5', [2]),
        ("score > 0.4 or not tags", [0, 1, 2]),
        ("score <= 1", [0]),
        ("not score", [1]),
        ("score is None", None),
        ("score == None", [1]),
        ('"b" in tags and lang not in ["de", "EN"]', [0]),
        ('meta.source == "book"', [2]),
        ('meta["source"] == "web"', [0]),
        ("meta.n[0] >= 3", [2]),
        ("0 < len(tags) < 2", [2]),
        ("-1 < score < 1.5", [0]),
        ("int(score) == 3", [2]),
        ("len(meta) == 0", [1]),
        ("True", [0, 1, 2]),
    ],
)
def test_conditions_keep_the_rows_that_python_would(condition: str, kept: list[int] | None) -> None:
    if kept is None:
        with pytest.raises(ConfigError, match=r"compare with ==, !=, <"):
            Corpus.open(ROWS, where=condition)
        return
    corpus = Corpus.open(ROWS, where=condition)
    assert [n for n, document in enumerate(corpus.documents()) if document] == kept
    assert list(corpus.documents(1)) == list(corpus.documents())[1:]


@given(st.integers(-3, 3), st.integers(-3, 3), st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), st.booleans(), st.booleans())
def test_comparisons_equal_those_of_python(a: int, b: int, op: str, negated: bool, both: bool) -> None:
    text = f"{'not ' if negated else ''}a {op} b {'and' if both else 'or'} a == 0"
    assert Condition(text).holds({"a": a, "b": b}, "row 0") == eval(text, {"a": a, "b": b})


@pytest.mark.parametrize(
    "condition",
    [
        "lang = 'en'",
        "",
        "__import__('os').system('true')",
        "open('x')",
        "[n for n in tags]",
        "text.upper() == 'A'",
        "(lambda: 1)()",
        "f'{text}'",
        "10 ** 10 ** 10 > 1",
        "text * 1000000000",
        "len(text, text)",
        "tags[a:b]",
        "(" * 500,
        "a" * 20_000,
        "x := 1",
        "text if tags else lang",
    ],
)
def test_other_code_is_refused_before_anything_is_read(condition: str) -> None:
    with pytest.raises(ConfigError, match=r"condition .* cannot be read: .*len\(text\) > 100"):
        Corpus.open(ROWS, where=condition)


def test_attributes_are_fields_and_nothing_else() -> None:
    for condition in ("text.__class__ == 1", "meta.__class__.x == 1", "tags.append == 1"):
        with pytest.raises(CorpusError, match="row 0"):
            list(Corpus.open(ROWS, where=condition).documents())


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("quality > 1", r"row 0 has no field 'quality' for the condition 'quality > 1'; it has 'text', 'lang'"),
        ("text > 1", r"row 0 does not fit the condition 'text > 1': .*float\(score\)"),
        ("int(text) > 1", "row 0 does not fit the condition"),
        ("meta.n[5] == 1", "row 0 has no field 5"),
        ("len(score) > 1", "row 0 does not fit the condition"),
    ],
)
def test_rows_that_a_condition_does_not_fit(condition: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with pytest.raises(CorpusError, match=message):
        check_corpus(Corpus.open(tmp_path / "x.jsonl", where=condition))


def test_conditions_and_joined_fields_of_every_format(tmp_path: Path) -> None:
    import datasets

    rows = [{"title": f"t{n}", "body": None if n == 2 else f"b{n}", "n": n, "other": "x"} for n in range(6)]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "x.jsonl.zst").write_bytes(pa.compress((tmp_path / "x.jsonl").read_bytes(), codec="zstd", asbytes=True))
    datasets.Dataset(table).save_to_disk(str(tmp_path / "saved"), num_shards=2)
    fields = Fields("title, body", "; ", "n != 4")
    wanted = ["t0; b0", "t1; b1", "t2", "t3; b3", "", "t5; b5"]
    for source in ("x.parquet", "x.jsonl", "x.jsonl.zst", "saved"):
        corpus = Corpus.open(tmp_path / source, text_field=fields)
        assert list(corpus.documents()) == wanted and list(corpus.documents(3)) == wanted[3:], source
        assert {"text_field": "title, body", "separator": "; ", "where": "n != 4"}.items() <= corpus.fingerprint().items()
        assert sorted(Corpus.open(tmp_path / source, text_field=fields, shuffle=1).documents()) == sorted(wanted)
        with pytest.raises(CorpusError, match=r"row 0 has no field 'foot'; it has 'title', 'body', 'n', 'other'"):
            check_corpus(Corpus.open(tmp_path / source, text_field="title,foot"))
        with pytest.raises(CorpusError, match=r"row 0, field 'n' holds a whole number; only text can be joined"):
            check_corpus(Corpus.open(tmp_path / source, text_field="title,n"))
        with pytest.raises(CorpusError, match=r"holds no text in rows with n > 9.*change --records"):
            check_corpus(Corpus.open(tmp_path / source, text_field="title", where="n > 9"))
    assert list(Corpus.open([{"a,b": "x"}], text_field="a,b").documents()) == ["x"]  # a name with a comma


def test_a_store_knows_the_condition(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    asked = {"context": 8, "progress": False}
    store = write_store(tmp_path / "s", tiny_lm, ["embed"], Corpus.open(tmp_path / "x.jsonl", where="score > 0.4"), **asked)
    assert [row.tolist() for row in store.columns(0, ["tokens", "document"])] == [[0, 4, 5, 0, 7, 8, 9], [0, 0, 0, 2, 2, 2, 2]]
    with pytest.raises(StoreMismatch, match=r"corpus.where is 'score > 0.4', asked was None"):
        write_store(tmp_path / "s", tiny_lm, ["embed"], Corpus.open(tmp_path / "x.jsonl"), **asked)


def test_token_ids_are_the_document(tmp_path: Path) -> None:
    import datasets

    lm = make_lm()
    texts = ["w1 w2 w3", "w4", "<s> w5 w6"]
    ids = [lm.text.plain_ids([text])[0] for text in texts]

    def tokens(corpus: Corpus) -> list[int]:
        return [token for batch in token_batches(lm, corpus, context=8) for token in batch.tokens_BT[batch.mask_BT].tolist()]

    wanted = tokens(Corpus.open(texts))
    assert wanted.count(0) == 4  # of three documents and two contexts; the <s> that is given is not doubled
    padded = [{"input_ids": [*row, 1, 1], "attention_mask": [1] * len(row) + [0, 0]} for row in ids]
    assert tokens(Corpus.open([{"input_ids": row} for row in ids])) == wanted
    assert tokens(Corpus.open(padded)) == wanted
    assert tokens(Corpus.open([np.array(row) for row in ids])) == wanted
    saved = datasets.Dataset.from_list([{**row, "n": 1} for row in padded])
    saved.to_parquet(str(tmp_path / "x.parquet"))
    saved.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in padded).encode()))
    for source in ("x.parquet", "saved", "x.jsonl.gz"):
        assert tokens(Corpus.open(tmp_path / source)) == wanted
        assert tokens(Corpus.open(tmp_path / source, text_field="input_ids")) == wanted


def test_token_ids_need_no_tokenizer() -> None:
    lm = make_lm()
    bare = LanguageModel.attach(lm.model, None, name="bare")
    (batch,) = token_batches(bare, Corpus.open([{"input_ids": [3, 4]}, {"input_ids": [5]}]), context=8)
    assert batch.tokens_BT.tolist() == [[3, 4, 5]] and batch.document_BT.tolist() == [[0, 0, 1]]
    with pytest.raises(ConfigError, match="bare has no tokenizer"):
        list(token_batches(bare, Corpus.open(["w1"]), context=8))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [1, 2.5]}, r"row 1 holds numbers that are not integers"),
        ({"input_ids": [True, False]}, r"row 1 holds numbers that are not integers"),
        ({"input_ids": [[1, 2], [3]]}, r"row 1 holds lists of different lengths, not token ids"),
        ({"input_ids": [[1, 2], [3, 4]]}, r"row 1 holds lists of lists, not token ids"),
        ({"input_ids": [1, -2]}, r"row 1 holds -2, which is not a token id"),
        ({"input_ids": [1, 63]}, r"row 1 holds the token id 63, and tiny has 63 tokens"),
        ({"input_ids": [1, 2], "attention_mask": [1]}, r"row 1 has 2 token ids and an attention_mask of 1"),
        ({"input_ids": [1, 2], "attention_mask": ["a", "b"]}, r"row 1: attention_mask holds numbers that are not integers"),
        ({"input_ids": ["a"]}, r"row 1 holds a list, not text, chat messages or token ids"),
    ],
)
def test_wrong_token_ids_are_named(row: dict[str, Any], message: str, tiny_lm: LanguageModel) -> None:
    with pytest.raises(CorpusError, match=message):
        list(token_batches(tiny_lm, Corpus.open([{"input_ids": [3]}, row]), context=8))


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2"])
def test_damaged_compressed_files_are_named(suffix: str, tmp_path: Path) -> None:
    codec = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}[suffix]
    text = "".join(json.dumps({"text": f"w{n} " * 50}) + "\n" for n in range(2000)).encode()
    data = gzip.compress(text) if codec != "zstd" else pa.compress(text, codec="zstd", asbytes=True)
    if codec == "bz2":
        import bz2

        data = bz2.compress(text)
    (tmp_path / f"cut.jsonl{suffix}").write_bytes(data[: len(data) // 2])
    (tmp_path / f"other.jsonl{suffix}").write_bytes(b"not compressed at all")
    for name in ("cut", "other"):
        with pytest.raises(CorpusError, match=rf"{name}.jsonl\{suffix} cannot be read"):
            list(Corpus.open(tmp_path / f"{name}.jsonl{suffix}").documents())


def test_a_kind_of_content_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    CONTENTS.register("shout", lambda value, record, where: value["said"].lower() if isinstance(value, dict) else None)
    try:
        assert list(Corpus.open([{"text": {"said": "HEY"}}, "you"]).documents()) == ["hey", "you"]
    finally:
        CONTENTS.unregister("shout")
