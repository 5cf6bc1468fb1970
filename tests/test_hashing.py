"""Hashes of numbers."""

from __future__ import annotations

import numpy as np

from feature_db.index.kernels import _mix
from saekit.activations.loader.source import is_heldout
from saekit.hashing import splitmix64


def test_splitmix64_gives_the_published_numbers() -> None:
    """The first outputs of the generator with seed 1234567, in the reference implementation by Vigna."""
    seeds = 1234567 + 0x9E3779B97F4A7C15 * np.arange(5, dtype=object)
    found = splitmix64(np.array([seed % 2**64 for seed in seeds], np.uint64))
    assert found.tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_the_compiled_hash_is_the_same() -> None:
    numbers = np.random.default_rng(0).integers(0, 2**64, 100, np.uint64)
    assert [int(_mix(number)) for number in numbers] == splitmix64(numbers).tolist()


def test_documents_that_are_held_out_stay_the_same() -> None:
    assert np.flatnonzero(is_heldout(np.arange(2000)))[:5].tolist() == [10, 21, 48, 68, 83]
