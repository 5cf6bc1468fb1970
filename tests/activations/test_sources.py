"""Shuffled sources: every row once per epoch, the same order for the same seed, and exact resuming."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saekit.activations import (
    ActivationReader,
    ActivationSource,
    ActivationStore,
    Corpus,
    LiveActivations,
    is_heldout,
    moments,
    token_batches,
)
from saekit.errors import CheckpointError, ConfigError, ContextTooLong, CorpusError, NonFiniteActivations, UnknownSite
from saekit.lm import LanguageModel, Site
from tests.kit.tiny import SPECIAL, WORDS, make_lm

RESID, NEURONS = Site.parse("resid_post.0"), Site.parse("neurons.1")
Make = Callable[..., ActivationSource]


@pytest.fixture(params=["store", "live"])
def make(request: pytest.FixtureRequest, tiny_store: ActivationStore, tiny_lm: LanguageModel, documents: list[str]) -> Make:
    """Both sources, over the same text."""

    def make_source(*sites: Site, batch_size: int = 256, buffer_tokens: int = 1000, **settings: Any) -> ActivationSource:
        common = {"batch_size": batch_size, "buffer_tokens": buffer_tokens, **settings}
        if request.param == "store":
            return ActivationReader(tiny_store, sites or [RESID], **common)
        common.pop("memory", None)
        return LiveActivations(tiny_lm, sites or [RESID], Corpus.open(documents), context=32, contexts=8, **common)

    return make_source


def _whole(store: ActivationStore) -> dict[str, Any]:
    blocks = list(store.stream([RESID, NEURONS]))
    return {
        "document": torch.cat([block.document_N for block in blocks]).numpy(),
        "special": torch.cat([block.special_N for block in blocks]).numpy(),
        RESID: torch.cat([block.acts[RESID] for block in blocks]),
        NEURONS: torch.cat([block.acts[NEURONS] for block in blocks]),
    }


def _bag(rows: Tensor) -> Counter[bytes]:
    return Counter(row.tobytes() for row in rows.numpy())


def _rows(source: ActivationSource, site: Site = RESID) -> Tensor:
    return torch.cat([batch[site] for batch in source])


def _equal(a: list[dict[Site, Tensor]], b: list[dict[Site, Tensor]]) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(torch.equal(x[site], y[site]) for site in x) for x, y in zip(a, b)
    )


@pytest.mark.parametrize("drop_special", [True, False])
@pytest.mark.parametrize("split", ["train", "heldout", "all"])
def test_every_row_of_the_split_once_an_epoch(make: Make, tiny_store: ActivationStore, split: str, drop_special: bool) -> None:
    whole = _whole(tiny_store)
    held = is_heldout(whole["document"], 0.2)
    wanted = {"train": ~held, "heldout": held, "all": np.ones_like(held)}[split] & ~(whole["special"] & drop_special)
    source = make(split=split, heldout=0.2, drop_special=drop_special, epochs=1)
    batches = list(source)
    expected = whole[RESID][torch.from_numpy(wanted)]
    assert source.n_tokens == len(expected) > 500
    assert [len(batch[RESID]) for batch in batches[:-1]] == [256] * (len(batches) - 1)
    assert _bag(torch.cat([batch[RESID] for batch in batches])) == _bag(expected)
    assert all(batch[RESID].dtype == torch.float32 and batch[RESID].is_contiguous() for batch in batches)


def test_epochs_differ_and_batches_span_them(make: Make) -> None:
    source = make(epochs=3)
    n = source.n_tokens
    rows = _rows(source)
    epochs = [rows[i * n : (i + 1) * n] for i in range(3)]
    assert len(rows) == 3 * n
    assert n % 256
    assert _bag(epochs[0]) == _bag(epochs[1]) == _bag(epochs[2])
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])
    if isinstance(source, ActivationReader):  # the buffers also mix different chunks in each epoch
        assert _bag(epochs[0][:1000]).keys() != _bag(epochs[1][:1000]).keys()
        assert len(_bag(epochs[0][:1000]) & _bag(epochs[1][:1000])) < 600
    # An endless source starts with the same rows.
    endless = torch.cat([batch[RESID] for batch in itertools.islice(make(), 3 * n // 256)])
    assert torch.equal(endless, rows[: len(endless)])


def test_order_depends_on_the_seed_alone(make: Make) -> None:
    first, again, other = (
        list(itertools.islice(make(seed=seed, memory=memory), 40)) for seed, memory in [(1, 2**30), (1, 0), (2, 0)]
    )
    assert _equal(first, again)
    assert not _equal(first, other)
    # The batch size does not change the stream.
    halves = torch.cat([batch[RESID] for batch in itertools.islice(make(seed=1, batch_size=128), 80)])
    assert torch.equal(halves, torch.cat([batch[RESID] for batch in first]))


def test_sites_stay_aligned(make: Make, tiny_store: ActivationStore) -> None:
    whole = _whole(tiny_store)
    times = _bag(whole[RESID])
    partner = {resid.tobytes(): neurons for resid, neurons in zip(whole[RESID].numpy(), whole[NEURONS])}
    compared = 0
    for batch in make(RESID, NEURONS, epochs=1):
        assert set(batch) == {RESID, NEURONS}
        for resid, neurons in zip(batch[RESID].numpy(), batch[NEURONS]):
            if times[resid.tobytes()] == 1:  # rows of the first words after BOS are not unique
                assert torch.equal(partner[resid.tobytes()], neurons)
                compared += 1
    assert compared > 4000


@settings(max_examples=25, deadline=None)
@given(data=st.data(), buffer_tokens=st.sampled_from([1, 300, 1000, 10**6]), batch_size=st.sampled_from([1, 77, 256, 9000]))
def test_resuming_a_reader_anywhere(
    tiny_store: ActivationStore, data: st.DataObject, buffer_tokens: int, batch_size: int
) -> None:
    def make_reader() -> ActivationReader:
        return ActivationReader(tiny_store, [RESID, NEURONS], batch_size=batch_size, buffer_tokens=buffer_tokens, epochs=2)

    total = -(-2 * make_reader().n_tokens // batch_size)
    k = data.draw(st.integers(0, min(total, 300)))
    reader = make_reader()
    iterator = iter(reader)
    for _ in range(k):
        next(iterator)
    state = json.loads(json.dumps(reader.state()))
    following = list(itertools.islice(iterator, 20))
    resumed = make_reader()
    resumed.load_state(state)
    assert _equal(list(itertools.islice(resumed, 20)), following)


def test_resuming_where_a_buffer_ends(tiny_store: ActivationStore) -> None:
    def make_reader() -> ActivationReader:
        return ActivationReader(tiny_store, [RESID], batch_size=1, buffer_tokens=1, epochs=1)

    reader = make_reader()
    batches, states = [], [reader.state()]
    for batch in reader:
        batches.append(batch)
        states.append(reader.state())
    ends = [k for k in range(1, len(batches)) if states[k]["group"] != states[k - 1]["group"]]
    assert len(ends) >= 5
    for k in (k + shift for k in ends for shift in (-2, -1, 0, 1)):
        resumed = make_reader()
        resumed.load_state(states[k])
        assert _equal(list(itertools.islice(resumed, 3)), batches[k : k + 3])


@pytest.mark.parametrize("k", [0, 1, 4, 9, 17, 22, 23, 24, 45])
def test_resuming_live_activations(make: Make, k: int) -> None:
    source = make(RESID, NEURONS, epochs=2)
    iterator = iter(source)
    for _ in range(k):
        next(iterator, None)
    state = json.loads(json.dumps(source.state()))
    following = list(iterator)
    resumed = make(RESID, NEURONS, epochs=2)
    resumed.load_state(state)
    assert _equal(list(resumed), following)


def test_iteration_resumes_and_restarts_after_the_end(make: Make) -> None:
    whole = list(make(epochs=1))
    source = make(epochs=1)
    some = list(itertools.islice(source, 5))
    assert _equal(some + list(source), whole)
    assert _equal(list(source), whole)
    # A source resumed after the last batch has no more batches.
    finished = make(epochs=1)
    for batch in finished:
        last = batch
    assert torch.equal(last[RESID], whole[-1][RESID])
    iterator = iter(finished)
    for _ in whole:
        next(iterator)
    resumed = make(epochs=1)
    resumed.load_state(finished.state())
    assert list(resumed) == []


def test_a_sample_does_not_move_the_reader(make: Make) -> None:
    source = make()
    first = list(itertools.islice(source, 3))
    sample = source.sample(700)
    assert torch.equal(sample[RESID], torch.cat([batch[RESID] for batch in first])[:700])
    more = list(itertools.islice(source, 2))
    assert _equal(first + more, list(itertools.islice(make(), 5)))
    assert len(source.sample(10**9)[RESID]) == source.n_tokens


def test_moments_are_those_of_numpy(tiny_store: ActivationStore) -> None:
    x = ActivationReader(tiny_store, [RESID], batch_size=100).sample(1000)[RESID]
    found = moments(x)
    y = x.numpy().astype(np.float64)
    assert np.allclose(found.mean_D.numpy(), y.mean(0), rtol=1e-6)
    assert np.isclose(found.mean_norm, np.mean([np.sqrt((row**2).sum()) for row in y]))
    assert np.isclose(found.variance, y.var(0).sum())


def test_rows_are_mixed(tiny_store: ActivationStore) -> None:
    whole = _whole(tiny_store)[RESID].numpy()
    where = {row.tobytes(): index for index, row in enumerate(whole)}
    reader = ActivationReader(tiny_store, [RESID], batch_size=500, split="all", drop_special=False, epochs=1)
    order = np.array([where[row.tobytes()] for row in _rows(reader).numpy()])
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.05
    # Each batch is a random sample of the whole: its mean position has a standard deviation of 1/sqrt(12 n).
    means = [order[i : i + 500].mean() / len(order) for i in range(0, len(order) - 500, 500)]
    assert max(abs(mean - 0.5) for mean in means) < 5 / np.sqrt(12 * 500)


@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, 2**40), heldout=st.floats(0, 0.99))
def test_held_out_documents(start: int, heldout: float) -> None:
    documents = np.arange(start, start + 4000)
    held = is_heldout(torch.from_numpy(documents), heldout)
    assert abs(held.mean() - heldout) < 5 * np.sqrt(heldout * (1 - heldout) / 4000) + 1e-9
    assert np.array_equal(held[100:200], is_heldout(documents[100:200], heldout))
    # A larger held-out share keeps the documents that a smaller share holds out.
    assert not (held & ~is_heldout(documents, min(0.995, heldout + 0.004))).any()
    # Neighbouring documents are held out independently.
    both = (held[1:] & held[:-1]).mean()
    assert abs(both - heldout**2) < 6 * np.sqrt(max(heldout**2 * (1 - heldout**2), 1e-9) / 4000) + 1e-3


def test_what_cannot_be_done(make: Make, tiny_lm: LanguageModel, tiny_store: ActivationStore) -> None:
    for asked, error, message in [
        ({"batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"buffer_tokens": 0}, ConfigError, "buffer_tokens is 0"),
        ({"epochs": 0}, ConfigError, "epochs is 0"),
        ({"seed": -1}, ConfigError, "seed is -1"),
        ({"split": "test"}, ConfigError, "no split 'test'"),
        ({"heldout": 1.0}, ConfigError, "heldout is 1.0"),
    ]:
        with pytest.raises(error, match=message):
            make(**asked)
    with pytest.raises(UnknownSite):
        make(Site.parse("resid_post.7"))
    with pytest.raises((ConfigError, CorpusError), match="is in the split 'heldout'"):
        next(iter(make(split="heldout", heldout=0.0)))
    with pytest.raises(ConfigError, match="No site"):
        ActivationReader(tiny_store, [], batch_size=1)
    with pytest.raises(ContextTooLong):
        LiveActivations(tiny_lm, [RESID], Corpus.open(["w1"]), batch_size=1, context=100)


def test_states_of_other_sources_are_refused(make: Make) -> None:
    state = make(seed=1).state()
    with pytest.raises(CheckpointError, match="read with seed 1, now it is 2"):
        make(seed=2).load_state(state)
    with pytest.raises(CheckpointError, match="read with heldout"):
        make(seed=1, heldout=0.3).load_state(state)
    with pytest.raises(CheckpointError, match="not the state"):
        make(seed=1).load_state({"step": 3})


def test_live_equals_stored(tiny_lm: LanguageModel, tiny_store: ActivationStore, documents: list[str]) -> None:
    live = LiveActivations(tiny_lm, [RESID], Corpus.open(documents), batch_size=100, context=32, contexts=8, epochs=1)
    stored = ActivationReader(tiny_store, [RESID], batch_size=100, epochs=1)
    assert live.n_tokens == stored.n_tokens
    assert live.width(RESID) == stored.width(RESID) == 16
    assert _bag(_rows(live)) == _bag(_rows(stored))
    # Live activations of a part of the corpus.
    part = LiveActivations(
        tiny_lm, [RESID], Corpus.open(documents), batch_size=100, context=32, n_tokens=555, split="all", epochs=1
    )
    tokens = torch.cat([b.tokens_BT[b.mask_BT] for b in token_batches(tiny_lm, Corpus.open(documents), context=32, n_tokens=555)])
    assert part.n_tokens == int((tokens >= len(SPECIAL)).sum()) == len(_rows(part))


@pytest.mark.parametrize("k", range(0, 24, 2))
def test_resuming_live_activations_of_a_part_of_the_corpus(tiny_lm: LanguageModel, documents: list[str], k: int) -> None:
    def make_source() -> LiveActivations:
        corpus = Corpus.open(documents)
        return LiveActivations(
            tiny_lm, [RESID], corpus, batch_size=100, buffer_tokens=300, context=32, contexts=4, n_tokens=1200, epochs=2
        )

    whole = list(make_source())
    assert 20 < len(whole) < 24
    source, resumed = make_source(), make_source()
    for _ in itertools.islice(source, k):
        pass
    resumed.load_state(source.state())
    assert _equal(list(resumed), whole[k:])


def test_live_finds_nan() -> None:
    lm = make_lm()
    with torch.no_grad():
        lm.embedding.weight[WORDS.index("w7") + len(SPECIAL)] = float("nan")  # type: ignore[index,union-attr]
    source = LiveActivations(lm, ["embed"], Corpus.open(["w1", "w2 w7"]), batch_size=2, split="all")
    with pytest.raises(NonFiniteActivations, match=r"embed at document 1, position \d+ \(token 10\) is NaN"):
        next(iter(source))


@pytest.mark.parametrize("name", ["epoch", "group", "row", "seen", "cursor", "settings"])
@pytest.mark.parametrize("value", [None, "1", -1, 1.5, True, [[1]], {"a": 1}, ["a", "b"]])
def test_states_of_other_types_are_refused(name: str, value: object, tiny_store: ActivationStore) -> None:
    reader = ActivationReader(tiny_store, ["resid_post.0"], batch_size=8)
    with pytest.raises(CheckpointError):
        reader.load_state({**reader.state(), name: value})
    assert next(iter(reader))


def test_a_store_and_a_corpus_can_be_read_after_the_folder_changed(
    tiny_store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.txt").write_text("one\ntwo\n")
    monkeypatch.chdir(tmp_path)
    corpus = Corpus.open("x.txt")
    store = ActivationStore.open(os.path.relpath(tiny_store.path))
    monkeypatch.chdir("/")
    assert list(corpus.documents()) == ["one", "two"]
    assert sum(len(block.tokens_N) for block in store.stream([])) == store.n_tokens
