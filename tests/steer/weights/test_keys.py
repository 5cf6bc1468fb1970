"""Key statistics against dense sums, their files, and going on where they were stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saekit.activations.corpus.base import Corpus
from saekit.activations.corpus.batches import token_batches
from saekit.errors import InterventionError, StoreMismatch, UnknownSite
from saekit.lm import LanguageModel
from saekit.steer.weights import KeyStatistics, keys
from tests.kit.fuzz import mutations
from tests.kit.tiny import make_documents, make_lm
from tests.lm.conftest import attach


def test_moments_are_those_of_all_ordinary_tokens(lm: LanguageModel, corpus: Corpus, statistics: KeyStatistics) -> None:
    found = []
    for batch in token_batches(lm, corpus, context=64, n_tokens=1000, batch_size=1):
        acts = lm.run(batch.tokens_BT, read=["neurons.1"])["neurons.1"]
        found.append(acts[lm.ordinary(batch.tokens_BT)].double())
    keys_NI = torch.cat(found)
    assert statistics.n_tokens == len(keys_NI)
    torch.testing.assert_close(statistics.moment(1), keys_NI.T @ keys_NI / len(keys_NI), rtol=1e-5, atol=1e-9)


def test_solve_and_null_space(statistics: KeyStatistics) -> None:
    C = statistics.moment(0)
    ridge = keys.RIDGE * C.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    k = torch.randn(24, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close((C + ridge) @ statistics.solve(0, k), k)
    basis = statistics.null_space(0, 0.05)
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
    assert 0 < float((basis.T @ C @ basis).trace()) <= 0.05 * float(C.trace())
    with pytest.raises(InterventionError, match="No direction"):
        statistics.null_space(0, 1e-12)
    with pytest.raises(InterventionError, match="no layer 7"):
        statistics.moment(7)


def test_a_stopped_collection_goes_on_to_the_same_bytes(
    lm: LanguageModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collect(name: str) -> KeyStatistics:
        return KeyStatistics.collect(lm, corpus, [0], n_tokens=1000, path=tmp_path / name, context=16, progress=False)

    monkeypatch.setattr(keys, "_EVERY", 1)
    monkeypatch.setattr(keys.TokenLayout, "resolve", lambda layout, lm: keys.TokenLayout(16, contexts=4))
    collect("whole.safetensors")
    runs, run = [0], lm.run

    def stopping(*args: object, **kwargs: object) -> object:
        runs[0] += 1
        if runs[0] == 6:
            raise KeyboardInterrupt
        return run(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(lm, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        collect("stopped.safetensors")
    assert "cursor" in KeyStatistics.load(tmp_path / "stopped.safetensors").facts
    before = runs[0]
    collect("stopped.safetensors")
    assert (tmp_path / "stopped.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert runs[0] - before < 16  # of 16 passes in all, four were kept
    again = runs[0]
    collect("stopped.safetensors")
    assert runs[0] == again  # nothing is left to do


def test_further_layers_are_added_to_the_file(lm: LanguageModel, corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "keys.safetensors"
    KeyStatistics.collect(lm, corpus, [0], n_tokens=500, path=path, progress=False)
    both = KeyStatistics.collect(lm, corpus, [1], n_tokens=500, path=path, progress=False)
    whole = KeyStatistics.collect(lm, corpus, [0, 1], n_tokens=500, progress=False)
    assert set(both.sums) == set(KeyStatistics.load(path).sums) == {0, 1}
    assert all(torch.equal(both.sums[layer], whole.sums[layer]) for layer in (0, 1))


def test_other_models_corpora_and_changed_files_are_refused(
    lm: LanguageModel, corpus: Corpus, statistics: KeyStatistics, tmp_path: Path
) -> None:
    path = tmp_path / "keys.safetensors"
    statistics.save(path)
    with pytest.raises(StoreMismatch, match="statistics are of tiny"):
        KeyStatistics.collect(make_lm(seed=1), corpus, [0], n_tokens=1000, path=path, progress=False)
    with pytest.raises(InterventionError, match="another corpus"):
        KeyStatistics.collect(lm, Corpus.open(make_documents(9, seed=1)), [0], n_tokens=1000, path=path, progress=False)
    with pytest.raises(InterventionError, match="another number of tokens"):
        KeyStatistics.collect(lm, corpus, [0], n_tokens=999, path=path, progress=False)
    whole = path.read_bytes()
    for kind, content in mutations(whole, 30):
        path.write_bytes(content)
        if content != whole:
            with pytest.raises(InterventionError):
                pytest.fail(f"{kind}: {KeyStatistics.load(path)}")
    with pytest.raises(InterventionError, match="ends in"):
        statistics.save(tmp_path / "keys.bin")


def test_layers_of_experts_have_no_single_projection(corpus: Corpus) -> None:
    with pytest.raises(UnknownSite):
        KeyStatistics.collect(attach("mixtral"), corpus, [0], progress=False)
