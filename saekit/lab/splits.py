"""What is kept out of training: decided by a hash of the case itself, so that no seed and no order can move it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Literal, TypeVar

Split = Literal["train", "heldout"]
T = TypeVar("T")


def is_heldout(*case: object, share: float = 0.1) -> bool:
    """Whether the combination `case` is one of the `share` that no training document holds."""
    digest = hashlib.blake2b("\x1f".join(map(str, case)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def draw(
    rng: Random, split: Split, make: Callable[[Random], T], *, case: Callable[[T], tuple[object, ...]], share: float = 0.1
) -> T:
    """Draws with `make` until the `case` of what it made (as `is_heldout(*case)` sees it) belongs to `split`."""
    while True:
        made = make(rng)
        if is_heldout(*case(made), share=share) == (split == "heldout"):
            return made


def phrase(rng: Random, split: Split, phrasings: Sequence[T], heldout: int) -> T:
    """One of `phrasings`; the last `heldout` of them are the ones that training never sees."""
    border = len(phrasings) - heldout
    kept = phrasings[border:] if split == "heldout" else phrasings[:border]
    return rng.choice(kept)
