"""Damage to the bytes of a file, as from a faulty disk, an incomplete copy or an attacker."""

from __future__ import annotations

import random
from collections.abc import Iterator

_DEEP = [b"[" * 50_000, b'{"a":' * 50_000]
_NUMBERS = [b"1e999", b"NaN", b"-1", b"9" * 400]
_ODD = [b"", b"\xff\xfe", b"\xef\xbb\xbf", b"\x00" * 16, b'"\\ud800"', *_DEEP, *_NUMBERS]


def flip(data: bytes, random: random.Random) -> bytes:
    """`data` with one bit of one byte changed."""
    changed = bytearray(data)
    changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def mutations(data: bytes, n: int, *, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """`n` damaged versions of `data`, each with the name of the damage.

    Args:
        data: the content of a good file, not empty.
        n: number of versions.
        seed: the same seed gives the same damage.
    """
    rng = random.Random(seed)
    for number in range(n):
        kind = ("flip", "cut", "insert", "overwrite", "repeat", "odd")[number % 6]
        place = rng.randrange(len(data))
        if kind == "flip":
            yield kind, flip(data, rng)
        elif kind == "cut":
            yield kind, data[:place]
        elif kind == "insert":
            yield kind, data[:place] + rng.randbytes(rng.randrange(1, 9)) + data[place:]
        elif kind == "overwrite":
            length = rng.randrange(1, 65)
            yield kind, data[:place] + rng.randbytes(length) + data[place + length :]
        elif kind == "repeat":
            yield kind, data[:place] + data
        else:
            odd = _ODD[number // 6 % len(_ODD)]
            yield kind, odd if rng.random() < 0.3 else data[:place] + odd + data[place + 1 :]
