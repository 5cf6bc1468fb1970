"""Computed activations are those of a store, bit for bit, in the same blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from saekit.activations import Block, ComputedActivations, Corpus, write_store
from saekit.errors import NonFiniteActivations, UnknownSite
from saekit.lm import LanguageModel
from tests.kit.tiny import make_documents, make_lm

SITES = ["resid_post.0", "neurons.1"]


def same(one: Block, two: Block) -> None:
    assert one.start == two.start
    for name in ("tokens_N", "position_N", "document_N", "special_N"):
        a, b = getattr(one, name), getattr(two, name)
        assert a.dtype == b.dtype and torch.equal(a, b), name
    assert one.acts.keys() == two.acts.keys()
    for site, acts in one.acts.items():
        assert acts.dtype == two.acts[site].dtype and torch.equal(acts, two.acts[site]), site


@pytest.mark.parametrize(
    ("packing", "dtype", "n_tokens"), [("pack", "float32", 777), ("document", "bfloat16", None), ("pack", "float16", None)]
)
def test_blocks_are_those_of_a_store(
    packing: Any, dtype: str, n_tokens: int | None, tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    corpus = Corpus.open(make_documents(60, seed=3))
    settings: dict[str, Any] = {
        "context": 20, "batch_size": 5, "packing": packing, "n_tokens": n_tokens, "dtype": dtype, "shard_tokens": 230,
    }  # fmt: skip
    store = write_store(tmp_path / "store", tiny_lm, SITES, corpus, progress=False, **settings)
    computed = ComputedActivations(tiny_lm, SITES, corpus, progress=False, **settings)
    assert len(store.shard_rows) > 2
    assert (computed.n_tokens, computed.provenance) == (store.n_tokens, store.provenance)
    assert [computed.width(site) for site in SITES] == [store.width(site) for site in SITES]
    for batch_tokens in (1, 47, 100, 10_000):
        expected = list(store.stream(SITES, batch_tokens=batch_tokens))
        for one, two in zip(expected, computed.stream(SITES, batch_tokens=batch_tokens), strict=True):
            same(one, two)
    blocks = list(store.stream(SITES, batch_tokens=47))
    for n in (1, len(blocks) // 2, len(blocks) - 1):
        found = list(computed.stream(SITES, batch_tokens=47, start=blocks[n].start, part=(1, 3)))
        for one, two in zip(store.stream(SITES, batch_tokens=47, start=blocks[n].start, part=(1, 3)), found, strict=True):
            same(one, two)
        assert [len(each.acts) for each in found] == [2 * (i % 3 == 1) for i in range(len(found))]
    assert list(computed.stream(SITES, start=store.n_tokens)) == []


def test_the_model_runs_for_wanted_blocks_only(tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus.open(make_documents(60, seed=3))
    computed = ComputedActivations(tiny_lm, SITES, corpus, context=20, batch_size=4, progress=False)
    run, passes = tiny_lm.run, []
    monkeypatch.setattr(tiny_lm, "run", lambda *given, **how: passes.append(given) or run(*given, **how))
    blocks = list(computed.stream(SITES, batch_tokens=80))
    every = len(passes)
    assert every == -(-computed.n_tokens // 80) and len(blocks) == every
    passes.clear()
    list(computed.stream(SITES, batch_tokens=80, start=blocks[5].start, part=(0, 2)))
    assert len(passes) == -(-(every - 5) // 2)
    passes.clear()
    assert sum(len(block.tokens_N) for block in computed.stream([], batch_tokens=80)) == computed.n_tokens and not passes


def test_what_cannot_be_computed_is_named(tiny_lm: LanguageModel) -> None:
    corpus = Corpus.open(make_documents(5))
    with pytest.raises(UnknownSite):
        ComputedActivations(tiny_lm, ["resid_post.99"], corpus)
    broken = make_lm()
    with torch.no_grad():
        broken.embedding.weight.fill_(1e30)  # type: ignore[union-attr,operator]
    with pytest.raises(NonFiniteActivations, match="embed at document 0, position 0"):
        list(ComputedActivations(broken, ["embed"], corpus, dtype="float16", progress=False).stream(["embed"]))
