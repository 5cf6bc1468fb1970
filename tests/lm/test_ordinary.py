"""Which tokens count is decided by one rule, and every user of it agrees on a tokenizer without BOS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from feature_db.search.running import fired_by_query
from saekit.activations import Corpus, write_store
from saekit.errors import ConfigError
from saekit.evaluate.dictionary.cross_entropy import ce_recovered
from saekit.evaluate.dictionary.quality import padded
from saekit.evaluate.dictionary.transfer import _activations
from saekit.evaluate.steering.side_effects import kl
from saekit.lm import At, Edit, LanguageModel, Site, ordinary
from saekit.lm.padding import pad
from saekit.lm.run.batches import document_activations
from saekit.sae import SAE
from saekit.steer import patch
from saekit.steer.measures import measure
from tests.kit.tiny import make_documents, make_lm

SITE = Site("resid_post", 0)


@given(
    rows=st.lists(st.lists(st.integers(0, 9), min_size=0, max_size=6), min_size=1, max_size=4),
    side=st.sampled_from(["left", "right"]),
    special=st.sets(st.integers(0, 9), max_size=3),
    keep_first=st.booleans(),
    fill=st.integers(0, 9),
)
def test_real_tokens_that_are_neither_special_nor_first(
    rows: list[list[int]], side: Any, special: set[int], keep_first: bool, fill: int
) -> None:
    tokens_BT, mask_BT = pad(rows, side, fill)
    found = ordinary(tokens_BT, special, mask=mask_BT, keep_first=keep_first)
    counts = [[token not in special and (n > 0 or keep_first) for n, token in enumerate(row)] for row in rows]
    expected, _ = pad(counts, side, fill=0)
    assert torch.equal(found, expected.bool())
    arrays = ordinary(tokens_BT.numpy(), torch.tensor(sorted(special)), mask=mask_BT.numpy(), keep_first=keep_first)
    assert isinstance(arrays, np.ndarray) and np.array_equal(arrays, found.numpy())
    placed = [(token, n) for row in rows for n, token in enumerate(row)]
    if placed:
        tokens_N, position_N = torch.tensor(placed).T
        flat = ordinary(tokens_N, special, position=position_N, keep_first=keep_first)
        assert flat.tolist() == [each for row in counts for each in row]


@given(rows=st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=4), side=st.sampled_from(["left", "right"]))
def test_pads_stand_on_their_side(rows: list[list[int]], side: Any) -> None:
    tokens_BT, mask_BT = pad(rows, side, 7)
    assert tokens_BT.shape == mask_BT.shape == (len(rows), max(map(len, rows), default=0))
    for row, tokens, mask in zip(rows, tokens_BT.tolist(), mask_BT.tolist()):
        filled = [(token, 1) for token in row]
        gap = [(7, 0)] * (len(tokens) - len(row))
        assert list(zip(tokens, mask)) == (gap + filled if side == "left" else filled + gap)


def test_there_are_two_sides() -> None:
    with pytest.raises(ConfigError, match="'middle'"):
        pad([[1]], "middle")  # type: ignore[arg-type]


# Every user of the rule, on a tokenizer without BOS: the first token of a context is an attention sink all the same.


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    lm = make_lm(bos=False)
    assert lm.bos_token_id is None
    return lm


@pytest.fixture
def texts(lm: LanguageModel) -> list[str]:
    return [text for text in make_documents(8) if len(lm.text.ids([text])[0]) > 3][:4]


def test_policies_leave_the_first_token_alone(lm: LanguageModel, texts: list[str]) -> None:
    seen: list[int] = []

    def look(rows: Tensor, at: At) -> Tensor:
        seen.extend(at.position_N.tolist())
        return rows

    lm.run(lm.encode(texts[:1])[0], edits=[Edit(SITE, look, positions="all")])
    assert seen and min(seen) == 1
    seen.clear()
    lm.run(lm.encode(texts[:1])[0], edits=[Edit(SITE, look, positions=[0])])
    assert seen == [0]
    assert patch(lm, f"residual:{SITE}/3", texts[0]).changes[0].positions.places[0] == 1  # type: ignore[union-attr,index]


def test_norms_are_those_of_the_tokens_that_are_trained_on(lm: LanguageModel, texts: list[str], tmp_path: Path) -> None:
    found = measure(lm, [], [SITE], texts).norms[SITE]
    documents = [{"text": text} for text in texts]
    store = write_store(tmp_path, lm, [SITE], Corpus.open(documents), context=64, packing="document", progress=False)
    rows = torch.cat([block.acts[SITE][~block.special_N] for block in store.stream([SITE])])
    assert found == pytest.approx(float(rows.norm(dim=1).median()))
    everything = torch.cat([block.acts[SITE] for block in store.stream([SITE])])
    assert len(everything) == len(rows) + len(texts)


def test_measures_see_no_first_token(lm: LanguageModel, texts: list[str], make_sae: Callable[..., SAE]) -> None:
    rows = lm.text.ids(texts)
    sae = make_sae("standard", lm.d_model, 20)
    n = sum(len(row) - 1 for row in rows)
    acts = torch.cat([each[SITE] for each in _activations(sae, lm, SITE, list(padded(lm, rows)))])
    assert len(acts) == n
    which, found = zip(*document_activations(lm, [SITE], rows))
    begins = np.cumsum([0, *map(len, rows)])[:-1]
    assert not set(np.concatenate(which)) & set(begins.tolist()) and sum(map(len, which)) == n
    torch.testing.assert_close(torch.cat([each[SITE] for each in found]).sort(0).values, acts.sort(0).values, rtol=0, atol=1e-5)
    batch = lm.text.pad(rows, "right")
    assert ce_recovered(lm, sae, SITE, [batch])["n_tokens"] == sum(len(row) - 2 for row in rows)
    # After the last block, a change at the first token reaches no other.
    only_first = Edit(Site("resid_post", lm.n_layers - 1), lambda x, at: x + 5, positions=[0])
    assert kl(lm, only_first, rows) == 0


def test_a_query_of_one_token_still_fires(lm: LanguageModel, make_sae: Callable[..., SAE]) -> None:
    sae = make_sae("standard", lm.d_model, 20)
    word = next(text for text in make_documents(1)[0].split() if len(lm.text.ids([text])[0]) == 1)
    assert fired_by_query(lm, sae, str(SITE), word)
    with torch.no_grad():
        several = fired_by_query(lm, sae, str(SITE), f"{word} {word} {word}")
        acts = lm.run(lm.encode([f"{word} {word} {word}"])[0], read=[SITE])[SITE][0, 1:]
        code = sae.encode_dense(acts).max(0).values
    assert dict(several) == pytest.approx({n: float(v) for n, v in enumerate(code) if v > 0}, rel=1e-4)
