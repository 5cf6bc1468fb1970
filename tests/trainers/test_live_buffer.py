"""Training on live activations: the wait before the first step, and the display during it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from saekit.activations import Corpus, LiveData, ReadOptions, write_store
from saekit.activations.loader import data
from saekit.names.site import Site
from saekit.names.site_map import Route
from saekit.sae import SAE
from tests.kit.tiny import make_documents, make_lm
from trainers import Plan, TrainConfig, train, train_all
from trainers.loop import train as loop

SITE = Site("resid_post", 0)
DOCUMENTS = make_documents(3_000)


def _store(folder: Path) -> LiveData:
    lm, corpus = make_lm(), Corpus.open(DOCUMENTS)
    return LiveData(write_store(folder, lm, [SITE], corpus, n_tokens=2_000, context=32, progress=False), lm, corpus)


def _config(tokens: int) -> TrainConfig:
    return TrainConfig(n_latents=32, l0=4, tokens=tokens, batch_size=64, sample_tokens=256, eval_tokens=256)


class _Bar:
    def __init__(self) -> None:
        self.shown: list[tuple[int, str]] = []

    def update(self, done: int, note: str = "") -> None:
        self.shown.append((done, note))


def test_a_short_run_computes_little_more_than_it_trains_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, bar = _store(tmp_path / "store"), _Bar()
    computed: list[int] = []

    @contextmanager
    def recorded(*_: object, **__: object) -> Iterator[_Bar]:
        yield bar

    run = store.lm.run
    monkeypatch.setattr(store.lm, "run", lambda tokens, **more: computed.append(tokens.numel()) or run(tokens, **more))
    monkeypatch.setattr(loop, "track", recorded)
    train(store, _config(1_000), tmp_path / "out", site=SITE)
    # A forward pass of live activations has 8192 tokens on every device. The corpus has 60,000 tokens.
    assert sum(computed) <= 2 * 8192
    notes = [note for done, note in bar.shown if done == 0]
    assert notes and notes[0] == "filling the shuffle buffer: 1,000/1,000 tokens"
    assert [done for done, _ in bar.shown] == sorted(done for done, _ in bar.shown) and bar.shown[-1][0] == 1_000


def test_the_buffer_of_longer_runs_is_unchanged(tmp_path: Path) -> None:
    store = _store(tmp_path / "store")
    for tokens, expected in ((1_000, 1_000), (131_072, 131_072), (10**7, 131_072)):
        order, options = store.order(0, 0.05, tokens), ReadOptions(batch_size=64)
        buffers = [store.reader([SITE], split, order, options).settings["buffer_tokens"] for split in ("train", "heldout")]
        assert buffers == [expected, 131_072]


def test_a_short_run_together_with_a_long_one_equals_the_short_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "BUFFER", 2_000)
    store = _store(tmp_path / "store")
    plans = [Plan(Route.parse(SITE), _config(tokens), tmp_path / str(tokens)) for tokens in (1_000, 2_000, 5_000)]
    assert train_all(store, plans, progress=False) == [None] * 3
    for plan in plans:
        alone = train(store, plan.config, tmp_path / f"alone {plan.out.name}", site=SITE, progress=False)
        assert alone.fingerprint() == SAE.load(plan.out).fingerprint()
