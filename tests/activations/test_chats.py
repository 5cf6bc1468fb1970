"""Chats from corpus to dictionary: the same tokens are trained on, stored, counted and measured."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saekit.activations import ActivationReader, ActivationStore, Corpus, LiveActivations, LiveData, token_batches, write_store
from saekit.errors import ConfigError, CorpusError, StoreMismatch
from saekit.lm import LanguageModel
from saekit.lm.chat import ChatTemplate
from tests.kit.tiny import SPECIAL, WORDS, make_lm

WITH_BOS = (
    "{{ bos_token }}{% for m in messages %}{{ 'w10 ' if m['role'] == 'user' else 'w11 ' }}"
    "{{ m['content'] | trim + ' </s> ' }}{% endfor %}"
)
WITHOUT_BOS = WITH_BOS.removeprefix("{{ bos_token }}")
CHATS = [
    [
        {"role": "user", "content": f"w{n % 7} w20"},
        {"role": "assistant", "content": " w30" * (1 + n % 5)},
        {"role": "user", "content": "w21"},
        {"role": "assistant", "content": "w31 w32"},
    ]
    for n in range(40)
]
ASKED: dict[str, Any] = {"context": 16, "batch_size": 4, "shard_tokens": 100, "progress": False}


def _lm(template: str | None = WITH_BOS, *, bos: bool = True) -> LanguageModel:
    lm = make_lm(bos=bos)
    lm.tokenizer.chat_template = template
    return lm


def _by_hand(messages: list[dict[str, str]], wanted: tuple[str, ...]) -> list[tuple[int, bool]]:
    """(id, whether it is trained on) of the tokens of a chat, without BOS. One word is one token."""
    number = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokens = []
    for message in messages:
        tokens.append((number["w10" if message["role"] == "user" else "w11"], "" in wanted))
        tokens += [(number[word], message["role"] in wanted) for word in message["content"].split()]
        tokens.append((1, False))
    return tokens


def _packed_by_hand(wanted: tuple[str, ...], context: int, opening: int | None) -> list[tuple[int, bool]]:
    """The rows of a store, token by token: BOS once at the beginning of each context and of each chat."""
    rows: list[tuple[int, bool]] = []
    for chat in CHATS:
        if len(rows) % context:
            rows.append((1 if opening is None else opening, False))
        for token, counts in _by_hand(chat, wanted):
            if len(rows) % context == 0 and opening is not None:
                rows.append((opening, False))
            rows.append((token, counts and len(rows) % context != 0))  # the first of a context is an attention sink
    return rows


@pytest.mark.parametrize("template", [WITH_BOS, WITHOUT_BOS])
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(
    ("train_on", "wanted"),
    [("all", ("", "user", "assistant")), ("content", ("user", "assistant")), ("assistant", ("assistant",))],
)
def test_labels_of_a_store_equal_those_by_hand(
    template: str, bos: bool, train_on: str, wanted: tuple[str, ...], tmp_path: Path
) -> None:
    if template is WITH_BOS and not bos:
        template = WITH_BOS.replace("bos_token", "''")  # what bos_token is for a tokenizer without one
    lm = _lm(template, bos=bos)
    store = write_store(
        tmp_path / "s", lm, ["embed"], Corpus.open([{"messages": chat} for chat in CHATS]), train_on=train_on, **ASKED
    )
    rows = [
        (token, not special)
        for shard in range(len(store.shard_rows))
        for token, special in zip(*(column.tolist() for column in store.columns(shard, ["tokens", "special"])))
    ]
    expected = _packed_by_hand(wanted, 16, 0 if bos else None)
    assert rows == expected
    counted = sum(counts for _, counts in expected)
    reader = ActivationReader(store, ["embed"], batch_size=8, split="all", epochs=1)
    assert reader.n_tokens == counted == sum(len(next(iter(batch.values()))) for batch in reader)
    if train_on != "all":
        ids = {token for token, counts in expected if counts}
        W = lm.model.get_input_embeddings().weight.detach()
        known = W[sorted(ids)]
        for batch in reader:
            x = next(iter(batch.values()))
            assert (torch.cdist(x, known).min(1).values < 1e-6).all()


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("template", [WITH_BOS, WITHOUT_BOS])
@pytest.mark.parametrize("bos", ["auto", "yes", "no"])
@pytest.mark.parametrize("packing", ["pack", "document"])
def test_bos_is_counted_once(adds: bool, template: str, bos: str, packing: str) -> None:
    """Tokenizers that add BOS to texts and others, templates that write it and others, and what the user asks for."""
    from tokenizers import processors

    tokenizer = make_lm().tokenizer
    if adds:
        tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.chat_template = template
    lm = LanguageModel.attach(make_lm().model, tokenizer, name="tiny", bos=bos)  # type: ignore[arg-type]
    assert (tokenizer("w1")["input_ids"][0] == 0) == adds
    begins = bos == "yes" or (bos == "auto" and adds)
    written = bos == "auto" and not adds and template is WITH_BOS  # only the template itself writes it, at the chat's beginning
    batches = list(token_batches(lm, Corpus.open([{"messages": chat} for chat in CHATS]), context=16, packing=packing))
    for batch in batches:
        rows = zip(
            batch.tokens_BT.tolist(), batch.document_BT.tolist(), batch.mask_BT.sum(1).tolist(), batch.position_BT.tolist()
        )
        for tokens, document, n, position in rows:
            for at in range(n):
                new = at == 0 or document[at] != document[at - 1]
                if begins or (packing == "document" and written):
                    assert (tokens[at] == 0) == new
                elif not written:
                    assert tokens[at] != 0
            assert position[0] == 0
    if written and packing == "pack":  # each chat begins with it once; a context that begins within a chat has none
        flat = [token for batch in batches for token in batch.tokens_BT[batch.mask_BT].tolist()]
        assert flat.count(0) == len(CHATS)
        assert all(after != 0 for before, after in itertools.pairwise(flat) if before == 0)


def test_live_training_takes_the_tokens_of_the_store(tmp_path: Path) -> None:
    lm, corpus = _lm(), Corpus.open([{"messages": chat} for chat in CHATS])
    store = write_store(tmp_path / "s", lm, ["embed"], corpus, train_on="assistant", **ASKED)
    stored = ActivationReader(store, ["embed"], batch_size=1000, split="all", epochs=1)
    live = LiveActivations(lm, ["embed"], corpus, batch_size=1000, split="all", epochs=1, context=16, train_on="assistant")
    assert live.n_tokens == stored.n_tokens
    rows = [torch.cat([next(iter(batch.values())) for batch in each]) for each in (stored, live)]
    assert torch.equal(*(x[np.lexsort(x.numpy().T)] for x in rows))
    of_all = LiveActivations(lm, ["embed"], corpus, batch_size=1000, split="all", epochs=1, context=16)
    assert of_all.n_tokens > live.n_tokens and "train_on" not in of_all.settings and live.settings["train_on"] == "assistant"
    LiveData(store, lm, corpus)
    with pytest.raises(StoreMismatch, match="another chat template"):
        LiveData(store, _lm(WITHOUT_BOS), corpus)


def test_the_template_is_recorded_and_checked(tmp_path: Path) -> None:
    lm, corpus = _lm(), Corpus.open([{"messages": chat} for chat in CHATS])
    store = write_store(tmp_path / "s", lm, ["embed"], corpus, **ASKED)
    assert store.provenance["chat_template"] == WITH_BOS and "train_on" not in store.provenance
    assert store.provenance["chat_template_sha256"] == ChatTemplate(lm.text).sha256
    (tmp_path / "s" / "shard-00001.h5").unlink()
    before = store.checksums
    assert write_store(tmp_path / "s", lm, ["embed"], corpus, **ASKED).checksums == before
    with pytest.raises(StoreMismatch, match="chat_template_sha256 is"):
        write_store(tmp_path / "s", _lm(WITHOUT_BOS), ["embed"], corpus, **ASKED)
    with pytest.raises(StoreMismatch, match=r"train_on is None, asked was 'content'"):
        write_store(tmp_path / "s", lm, ["embed"], corpus, train_on="content", **ASKED)
    assert "chat_template" not in write_store(tmp_path / "t", lm, ["embed"], Corpus.open(["w1 w2"]), **ASKED).provenance


def test_sharegpt_and_columns_of_messages_are_the_same_chats(tmp_path: Path) -> None:
    import datasets

    names = {"user": "human", "assistant": "gpt"}
    sharegpt = [{"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in chat]} for chat in CHATS]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sharegpt))
    saved = datasets.Dataset.from_list([{"messages": chat, "n": n} for n, chat in enumerate(CHATS)])
    saved.save_to_disk(str(tmp_path / "saved"))
    saved.to_parquet(str(tmp_path / "x.parquet"))
    lm = _lm()

    def tokens(corpus: Corpus) -> list[list[int]]:
        return [batch.tokens_BT[batch.mask_BT].tolist() for batch in token_batches(lm, corpus, context=16)]

    wanted = tokens(Corpus.open([{"messages": chat} for chat in CHATS]))
    for source in ("chats.jsonl", "saved", "x.parquet"):
        assert tokens(Corpus.open(tmp_path / source)) == wanted
    assert tokens(Corpus.open(CHATS)) == wanted  # a row may be the messages themselves
    assert tokens(Corpus.open(sharegpt, text_field="conversations")) == wanted


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user", "content": 5}]}, r"row 1, message 0 has a whole number as its content"),
        ({"messages": [{"role": "narrator", "content": "w1"}]}, r"row 1, message 0 has an unknown role 'narrator'"),
        ({"messages": [{"role": "asistant", "content": "w1"}]}, r"unknown role 'asistant'.*Did you mean 'assistant'"),
        ({"messages": [{"content": "w1"}]}, r"row 1, message 0 has no role; it has 'content'"),
        ({"messages": [{"role": "user", "content": None}]}, r"row 1, message 0: its content is null"),
        ({"messages": [{"role": "user"}]}, r"row 1, message 0 has no content"),
        ({"messages": [{"role": "user", "content": "w1"}, "w2"]}, r"row 1, message 1 is text, not a record"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, r"holds a part of type 'image'; only text"),
        ({"conversations": [{"from": "martian", "value": "w1"}]}, r"row 1, message 0 is from 'martian'"),
        ({"conversations": [{"from": "human", "value": None}]}, r"row 1, message 0 has nothing as its value"),
        ({"messages": "w1"}, None),
        ({"body": "w1"}, r"row 1 has no field 'text'; it has 'body'"),
        ({"messages": [{"role": "tool", "content": "w1"}]}, r"row 1: The chat template refuses these messages: no tools"),
    ],
)
def test_bad_rows_are_named(row: dict[str, Any], message: str | None) -> None:
    template = "{% if messages[0]['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}" + WITH_BOS
    corpus = Corpus.open([{"messages": CHATS[0]}, row])
    if message is None:
        assert len(list(token_batches(_lm(template), corpus, context=16))) == 1
        return
    with pytest.raises(CorpusError, match=message):
        list(token_batches(_lm(template), corpus, context=16))


CALL = [
    {"role": "user", "content": "w1"},
    {"role": "assistant", "content": None, "name": None, "tool_calls": [{"function": {"name": "w5", "arguments": "w6"}}]},
    {"role": "tool", "content": "w7"},
    {"role": "assistant", "content": "w8 w9"},
]
CALLS = "{% for call in m['tool_calls'] %}{{ call['function']['name'] + ' ' + call['function']['arguments'] + ' ' }}{% endfor %}"
BEGINS = "{% for m in messages %}{{ 'w10 ' if m['role'] == 'user' else 'w11 ' }}"
ENDS = "{% if m['role'] != 'assistant' %}{{ m['content'] + ' ' }}{% endif %}{% endfor %}"
ASSISTANT = "{% if m['role'] == 'assistant' %}{% generation %}SAYS{% endgeneration %}{% endif %}"
TAKES_NULL = "{% if m['content'] is none %}" + CALLS + "{% else %}{{ m['content'] + ' ' }}{% endif %}"
TAKES_MISSING = "{% if m['tool_calls'] %}" + CALLS + "{% endif %}{{ m['content'] }}{{ ' ' if m['content'] }}"


@pytest.mark.parametrize("says", [TAKES_NULL, TAKES_MISSING])
@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("train_on", ["all", "assistant"])
def test_a_null_content_beside_tool_calls(says: str, saved: bool, train_on: str, tmp_path: Path) -> None:
    lm = _lm(BEGINS + ASSISTANT.replace("SAYS", says) + ENDS, bos=False)
    if saved:
        import datasets

        datasets.Dataset.from_list([{"messages": CALL}]).to_parquet(str(tmp_path / "a.parquet"))
    else:
        _write(tmp_path / "a.jsonl", [{"messages": CALL}])
    store = write_store(tmp_path / "s", lm, ["embed"], Corpus.open(tmp_path), train_on=train_on, **ASKED)
    tokens, special = (column.tolist() for column in store.columns(0, ["tokens", "special"]))
    words = [[*SPECIAL, *WORDS][token] for token in tokens]
    assert words == ["w10", "w1", "w11", "w5", "w6", "w11", "w7", "w11", "w8", "w9"]
    if train_on == "assistant":
        assert [word for word, out in zip(words, special) if not out] == ["w5", "w6", "w8", "w9"]
    if says is TAKES_MISSING:
        assert tokens == lm.tokenizer.apply_chat_template(CALL, return_dict=False)


def test_a_null_does_not_change_the_fingerprint_of_chats_in_memory() -> None:
    """Stores of earlier versions, which dropped nulls, continue."""
    without = [{key: value for key, value in message.items() if value is not None} for message in CALL]
    assert Corpus.open([CALL]).fingerprint() == Corpus.open([without]).fingerprint()


def test_a_template_that_takes_no_null_content_is_named() -> None:
    template = "{% for m in messages %}{{ 'w1 ' + m['content'] }}{% endfor %}"
    with pytest.raises(CorpusError, match=r"row 0: The chat template refuses.*; content is null in message 1\."):
        list(token_batches(_lm(template), Corpus.open([CALL]), context=16))


def test_what_cannot_be_trained_on_in_part(tmp_path: Path) -> None:
    lm = _lm()
    with pytest.raises(ConfigError, match="holds no chat messages"):
        write_store(tmp_path / "s", lm, ["embed"], Corpus.open(["w1 w2"]), train_on="assistant", **ASKED)
    with pytest.raises(ConfigError, match="cannot be 'user'"):
        write_store(tmp_path / "s", lm, ["embed"], Corpus.open(CHATS), train_on="user", **ASKED)
    with pytest.raises(ConfigError, match="no chat template"):
        write_store(tmp_path / "s", _lm(None), ["embed"], Corpus.open(CHATS), **ASKED)
    with pytest.raises(CorpusError, match=r"row 1 holds chat messages, and the first document holds none"):
        write_store(tmp_path / "s", lm, ["embed"], Corpus.open(["w1 w2", CHATS[0]]), **ASKED)
    assert not (tmp_path / "s").exists() or not list((tmp_path / "s").iterdir())


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("train_on", ["assistant", "content"])
@pytest.mark.parametrize("other", [{"text": "w1 w2"}, {"input_ids": [3, 4]}])
@pytest.mark.parametrize("kind", ["file", "reversed file", "shuffled", "folder", "reversed folder", "mixture", "mixed part"])
def test_a_document_that_is_no_chat_is_refused_in_any_order(
    kind: str, other: dict[str, Any], train_on: str, tmp_path: Path
) -> None:
    chats, (a, b) = [{"messages": chat} for chat in CHATS], (tmp_path / "x" / name for name in ("a.jsonl", "b.jsonl"))
    source: Any
    source, shuffle, row = a, 3 if kind in ("shuffled", "mixed part") else None, 30
    if kind in ("file", "shuffled"):
        _write(a, [*chats[:30], other, *chats[30:]])
    elif kind == "reversed file":
        _write(a, [other, *chats])
        row = 0
    elif kind == "folder":
        source, row = _write(a, chats).parent, len(chats)
        _write(b, [other])
    elif kind == "reversed folder":
        source, row = _write(a, [other]).parent, 0
        _write(b, chats)
    elif kind == "mixture":
        _write(a, chats)
        source, row = {str(a): 0.5, str(_write(b, [other] * 40)): 0.5}, 0
    else:
        _write(a, chats)
        source, row = {str(a): 0.75, str(_write(b, [{"text": ""}, chats[0], other])): 0.25}, 2
    corpus = Corpus.open(source, shuffle=shuffle)
    named = {"folder": a.parent, "reversed folder": a.parent, "mixture": b, "mixed part": b}.get(kind, a)
    message = re.escape(f"{named}, row {row} holds no chat messages, and only chats can be trained on in part")
    lm = _lm()
    with pytest.raises(ConfigError, match=message):
        write_store(tmp_path / "s", lm, ["embed"], corpus, train_on=train_on, **ASKED)
    with pytest.raises(ConfigError, match=message):
        live = LiveActivations(lm, ["embed"], corpus, batch_size=10, split="all", epochs=1, context=16, train_on=train_on)
        list(live)
    if not kind.startswith("reversed"):  # of all tokens, texts may follow chats
        assert list(token_batches(lm, corpus, context=16))


def test_evaluation_counts_the_tokens_that_are_trained_on(tmp_path: Path) -> None:
    """Cross-entropy at the tokens that the store marks, against the model's own logits."""
    from saekit.evaluate.dictionary.cross_entropy import ce_recovered
    from saekit.evaluate.dictionary.quality import heldout_documents, padded
    from saekit.names.site_map import SiteMap
    from saekit.sae import SAE, SAEConfig

    lm, corpus = _lm(), Corpus.open([{"messages": chat} for chat in CHATS])
    store = write_store(tmp_path / "s", lm, ["resid_post.0"], corpus, train_on="assistant", **{**ASKED, "context": 64})
    found = heldout_documents(lm, store, 0.3, 10**6)
    assert found.split == "heldout" and found.chosen is not None
    cfg = SAEConfig("topk", d_in=16, n_latents=32, k=3, site_map=SiteMap.parse("resid_post.0"))
    torch.manual_seed(0)
    sae = SAE(cfg, {name: 0.4 * torch.randn(*shape) for name, shape in cfg.shapes().items()})
    facts = ce_recovered(lm, sae, "resid_post.0", padded(lm, found.rows, found.chosen), baseline="mean")
    sums, n = {"ce": 0.0, "ce_spliced": 0.0}, 0
    for row, chosen in zip(found.rows, found.chosen):
        assert row[0] == 0 and not chosen[0]
        assert {token for token, counts in zip(row, chosen) if counts} <= {33, 34, 35}  # w30, w31, w32
        marks_T = torch.tensor(chosen)

        def splice(module: Any, args: Any, output: Any, marks_T: torch.Tensor = marks_T) -> Any:
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden[0, marks_T] = sae(hidden[0, marks_T])
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        for name, hooks in (("ce", []), ("ce_spliced", [splice])):
            handles = [lm.blocks[0].register_forward_hook(hook) for hook in hooks]
            with torch.no_grad():
                log_p = lm.model(torch.tensor([row])).logits[0].double().log_softmax(-1)
            for handle in handles:
                handle.remove()
            sums[name] -= sum(float(log_p[at, row[at + 1]]) for at in range(len(row) - 1) if chosen[at])
        n += sum(chosen[:-1])
    assert facts["n_tokens"] == n
    assert {name: facts[name] for name in sums} == pytest.approx({name: total / n for name, total in sums.items()}, rel=1e-5)
    everything = ce_recovered(lm, sae, "resid_post.0", padded(lm, found.rows), baseline="mean")
    assert everything["n_tokens"] > n and everything["kl"] != facts["kl"]


def test_a_store_of_an_earlier_version_trains_on_all(tiny_store: ActivationStore) -> None:
    assert tiny_store.train_on == "all" and "train_on" not in tiny_store.provenance
