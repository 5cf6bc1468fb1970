"""Write the part of WordNet that searches use: which words name kinds of what another word names, and inflected forms.

The input is the folder `dict` of a WordNet 3.0 distribution. The output is feature_db/meaning/wordnet.npz, whose arrays
:class:`feature_db.meaning.wordnet.WordNet` describes. Phrases that name no category are left out, since a corpus is cut into
words.

Example:
    python -m scripts.write_wordnet WordNet-3.0/dict feature_db/meaning/wordnet.npz
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from feature_db.meaning.wordnet import PARTS

_BELOW = {"~", "~i", "&"}
"""Pointers to what is below a synset: its kinds, its instances, and adjectives like it."""
_FILES = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
_LONGEST = 32


@dataclass
class Read:
    """WordNet's synsets by (part of speech, offset)."""

    words: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    below: dict[tuple[str, int], list[tuple[str, int]]] = field(default_factory=dict)
    opposite: set[tuple[str, str]] = field(default_factory=set)
    weight: dict[tuple[str, tuple[str, int]], float] = field(default_factory=dict)
    """Of each word's senses: occurrences in a corpus with marked senses, plus a prior that falls with the rank of the sense."""
    count: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Of each word: these occurrences."""


def read(folder: Path) -> Read:
    """The synsets, and the weights of senses."""
    found, pairs = Read(), []
    for name, part in _FILES.items():
        for line in (folder / f"data.{name}").read_text().splitlines():
            if line.startswith(" "):
                continue
            cells = line.split(" | ")[0].split()
            key, n = (part, int(cells[0])), int(cells[3], 16)
            words = [cells[4 + 2 * i].split("(")[0].replace("_", " ") for i in range(n)]
            found.words[key] = [word.casefold() for word in words]
            at = 4 + 2 * n
            for i in range(int(cells[at])):
                symbol, offset, other, places = cells[at + 1 + 4 * i : at + 5 + 4 * i]
                target = ("a" if other == "s" else other, int(offset))
                # A head adjective and those like it point to each other; only the head is above.
                if symbol in _BELOW and (symbol != "&" or cells[2] == "a"):
                    found.below.setdefault(key, []).append(target)
                if symbol == "!":
                    pairs.append((key, int(places[:2], 16) - 1, target, int(places[2:], 16) - 1))
    for key, i, target, j in pairs:
        found.opposite.add((found.words[key][i], found.words[target][j]))
    parts = dict(zip("12345", "nvara"))
    for line in (folder / "index.sense").read_text().splitlines():
        sense, offset, rank, count = line.split()
        word, _, rest = sense.partition("%")
        word = word.replace("_", " ")
        found.weight[word, (parts[rest[0]], int(offset))] = int(count) + 1 / int(rank)
        found.count[word] += int(count)
    return found


def irregular(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Irregular forms of single words: (form, word, part of speech)."""
    for name, part in _FILES.items():
        for line in (folder / f"{name}.exc").read_text().splitlines():
            form, *words = line.split()
            for word in words:
                if "_" not in form + word and form != word:
                    yield form, word, part


def packed(found: Read, forms: list[tuple[str, str, str]]) -> dict[str, np.ndarray]:
    """The arrays of the file."""
    named = {word for key, words in found.words.items() if key in found.below for word in words}
    every = {word for words in found.words.values() for word in words}
    kept = sorted(word.encode() for word in every if " " not in word or word in named)
    kept = [word for word in kept if word.isascii() and len(word) <= _LONGEST]
    place = {word.decode(): i for i, word in enumerate(kept)}
    synsets = [key for key, words in found.words.items() if key in found.below or any(word in place for word in words)]
    number = {key: i for i, key in enumerate(synsets)}
    senses = defaultdict(list)
    for key in synsets:
        for word in dict.fromkeys(found.words[key]):
            if word in place:
                senses[place[word]].append((number[key], found.weight.get((word, key), 0.1)))
    pairs = [(word, synset, weight / sum(w for _, w in of)) for word, of in sorted(senses.items()) for synset, weight in of]
    below = [(number[key], number[other]) for key in synsets for other in found.below.get(key, ()) if other in number]
    opposite = sorted((place[a], place[b]) for a, b in found.opposite if a in place and b in place)
    known = sorted((form, base, part) for form, base, part in forms if base in place and form.isascii())
    return {
        "word": np.array(kept),
        "count": np.array([found.count.get(word.decode(), 0) for word in kept], np.int32),
        "part": np.array([PARTS.index(key[0]) for key in synsets], np.int8),
        "sense": np.array([pair[:2] for pair in pairs], np.int32),
        "share": np.array([round(255 * pair[2]) for pair in pairs], np.uint8),
        "below": np.array(sorted(below), np.int32),
        "opposite": np.array(opposite, np.int32),
        "form": np.array([form.encode() for form, *_ in known]),
        "form_of": np.array([place[base] for _, base, _ in known], np.int32),
        "form_part": np.array([PARTS.index(part) for *_, part in known], np.int8),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="WordNet's folder dict")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    arrays = packed(read(options.folder), list(irregular(options.folder)))
    np.savez_compressed(options.out, **arrays)
    print({name: array.shape for name, array in arrays.items()}, options.out.stat().st_size)


if __name__ == "__main__":
    main()
