"""Absorption, against its definition token by token, and planted in dictionaries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csr_array

from saekit.evaluate.dictionary.absorption import Absorption
from saekit.evaluate.dictionary.examples import Examples
from saekit.evaluate.dictionary.probes import Probe
from saekit.evaluate.dictionary.probing import probe
from saekit.sae import SAE, SAEConfig


def _token(codes_F: np.ndarray, cosine_F: np.ndarray, p: float, main: list[int]) -> tuple[float, int | None]:
    """(absorption fraction, the latent of a full absorption) of one token."""
    share_F = codes_F * cosine_F
    m = sum(share_F[f] for f in main)
    others = sorted(share_F[f] for f in range(len(codes_F)) if f not in main and cosine_F[f] >= 0.1 and share_F[f] > 0)
    a = sum(others[-3:])
    if p <= 0 or m >= p or a / p < 0.4:
        fraction = 0.0
    elif m <= 0:
        fraction = 1.0
    else:
        held = min(a, p - m)
        fraction = held / (held + m)
    firing = [f for f in range(len(codes_F)) if codes_F[f] != 0]
    top = max(firing, key=lambda f: share_F[f]) if firing else None
    full = top is not None and not any(codes_F[f] for f in main) and p >= 0 and cosine_F[top] >= 0.025
    return fraction, top if full and top is not None and share_F[top] >= 0.4 * p else None


_sizes = st.sampled_from([0.0, 0.0, 0.0, 0.3, 0.7, 1.0, 1.6, -0.5])


@given(
    arrays(np.float32, (6, 8), elements=_sizes),
    arrays(np.float64, 8, elements=st.sampled_from([-0.6, -0.11, 0.0, 0.03, 0.12, 0.37, 0.83])),
    arrays(np.float64, 6, elements=st.sampled_from([-1.0, 0.11, 0.52, 1.03, 2.57])),
    st.sets(st.integers(0, 7), min_size=1, max_size=3),
)
def test_equals_the_definition_token_by_token(codes: np.ndarray, cosine: np.ndarray, p: np.ndarray, main: set[int]) -> None:
    codes += np.where(codes != 0, 0.001 * np.arange(8, dtype=np.float32), 0)  # no ties
    expected = [_token(code.astype(float), cosine, each, sorted(main)) for code, each in zip(codes, p, strict=True)]
    found = Absorption.of(csr_array(codes), cosine, p, tuple(sorted(main)))
    assert found.examples == 6
    assert found.fraction == pytest.approx(np.mean([fraction for fraction, _ in expected]), abs=1e-6)
    full = [latent for _, latent in expected]
    if len({float(f) for f in cosine}) == 8 or all(latent is None for latent in full):  # latents of one cosine of 0 are alike
        assert found.full == pytest.approx(np.mean([latent is not None for latent in full]))


def test_without_tokens_there_is_no_absorption() -> None:
    found = Absorption.of(csr_array((0, 4)), np.ones(4), np.zeros(0), (1,))
    assert found.examples == 0
    assert math.isnan(found.fraction)
    assert math.isnan(found.full)
    assert found.absorber is None


WORDS, D, N = 50, 64, 4000


def _planted(held: float, absorbed: int = 1) -> tuple[SAE, Examples]:
    """Words of a concept, each a direction of its own and all with the concept's; other words without it.

    Latent 0 is the concept's, latent 1 + w the one of word w. On the words below `absorbed` the word's latent holds the share
    `held` of the concept and latent 0 the rest; on all others latent 0 holds it all. The last latent fires where the concept is
    not: it tells the concept as well as any, and does not stand for it.
    """
    rng = np.random.default_rng(0)
    eye = np.eye(D)
    words_FD = eye[1 : 1 + WORDS].copy()
    words_FD[:absorbed] += held * eye[0]
    norms_F = np.linalg.norm(words_FD, axis=1)
    word_N = rng.integers(0, WORDS, N)
    concept_N = rng.random(N) < 0.5
    other_N = ~concept_N
    codes_NF = np.zeros((N, 1 + WORDS + 1), np.float32)
    codes_NF[np.arange(N)[concept_N], 1 + word_N[concept_N]] = norms_F[word_N[concept_N]]
    codes_NF[concept_N, 0] = np.where(word_N[concept_N] < absorbed, 1 - held, 1.0)
    codes_NF[other_N, -1] = 1
    directions_FD = np.concatenate([eye[:1], words_FD / norms_F[:, None], eye[-1:]])
    b_dec = rng.normal(size=D)
    acts_ND = codes_NF @ directions_FD + b_dec
    # What lacks the concept has any word's direction too, so that only the concept's own tells it.
    acts_ND[other_N] += eye[1 + word_N[other_N]]
    sae = SAE(SAEConfig("standard", d_in=D, n_latents=len(directions_FD)))
    sae.W_dec[:], sae.b_dec[:] = torch.tensor(directions_FD), torch.tensor(b_dec)
    examples = Examples(
        ("planted",),
        acts_ND.astype(np.float32),
        csr_array(codes_NF),
        concept_N[:, None],
        rng.random(N) < 0.5,
        np.ones(N, bool),
    )
    return sae, examples


def _only(sae: SAE, examples: Examples) -> Probe:
    (found,) = probe(sae, examples, most=10**6, progress=False).found
    assert found.absorption is not None
    return found


def test_a_planted_absorption_is_found() -> None:
    sae, examples = _planted(held=1.0)
    found = _only(sae, examples).absorption
    assert found is not None
    assert found.main == (0,)
    assert found.absorber == 1
    own_n = examples.labels_NC[:, 0] & examples.test_N
    assert found.examples == own_n.sum()
    assert found.full == (examples.codes_NF[:, [0]].toarray()[own_n] == 0).mean() > 0
    assert found.fraction == pytest.approx(found.full)


def test_a_dictionary_without_absorption_has_none() -> None:
    sae, examples = _planted(held=0.0)
    found = _only(sae, examples).absorption
    assert found is not None
    assert (found.main, found.fraction, found.full, found.absorber) == ((0,), 0.0, 0.0, None)


def test_partial_absorption_is_not_full_absorption() -> None:
    sae, examples = _planted(held=0.6)
    found = _only(sae, examples).absorption
    assert found is not None
    assert found.main == (0,)
    assert (found.full, found.absorber) == (0.0, None)
    own_n = examples.labels_NC[:, 0] & examples.test_N
    assert found.fraction == pytest.approx(0.6 * (examples.codes_NF[:, [1]].toarray()[own_n] > 0).mean(), rel=0.1)


def test_a_concept_of_two_large_parts_is_split_and_not_absorbed() -> None:
    sae, examples = _planted(held=1.0, absorbed=1)
    rng = np.random.default_rng(1)
    codes = examples.codes_NF.toarray()
    concept_N = examples.labels_NC[:, 0]
    codes[concept_N] = 0
    half_N = rng.random(len(codes)) < 0.6
    codes[concept_N & half_N, 0] = 1
    codes[concept_N & ~half_N, 7] = 1
    split = Examples(("planted",), examples.acts_ND, csr_array(codes), examples.labels_NC, examples.test_N, examples.any_N)
    found = _only(sae, split).absorption
    assert found is not None
    assert found.main == (0, 7)
    assert found.full == 0


def test_texts_and_transcoders_have_no_absorption() -> None:
    sae, examples = _planted(held=1.0)
    texts = Examples(**{**vars(examples), "texts": True})
    transcoder = SAE(SAEConfig("transcoder", d_in=D, n_latents=sae.cfg.n_latents, d_out=D))
    for which, some in ((sae, texts), (transcoder, examples)):
        found = probe(which, some, progress=False)
        assert found.found[0].absorption is None
        assert "absorption" not in found.means()
