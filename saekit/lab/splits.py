"""The held-out split. A hash of the case itself decides, so that no seed and no order changes the split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Literal, TypeVar

Split = Literal["train", "heldout"]
T = TypeVar("T")


def is_heldout(*case: object, share: float = 0.1) -> bool:
    """Whether the combination `case` is held out: no training document contains it. A `share` of all cases is held out."""
    digest = hashlib.blake2b("\x1f".join(map(str, case)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def draw(
    rng: Random, split: Split, make: Callable[[Random], T], *, case: Callable[[T], tuple[object, ...]], share: float = 0.1
) -> T:
    """Call `make` until the `case` of the result (the arguments of :func:`is_heldout`) belongs to `split`."""
    while True:
        made = make(rng)
        if is_heldout(*case(made), share=share) == (split == "heldout"):
            return made


def phrase(rng: Random, split: Split, phrasings: Sequence[T], heldout: int) -> T:
    """A random one of `phrasings` for `split`. The last `heldout` phrasings are held out from training."""
    border = len(phrasings) - heldout
    kept = phrasings[border:] if split == "heldout" else phrasings[:border]
    return rng.choice(kept)
