"""A store whose features follow rules that are found by other means than the tests of labels: regular expressions on the text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from feature_db.effects.measured import Measured, TokenRows
from feature_db.index.projection import promoted
from saekit.activations import Corpus, token_batches
from saekit.lm import LanguageModel
from saekit.sae import SAE, SAEConfig
from tests.kit.planted import SITE, F, PlantedStore

_WORDS = "the a dog cat happy sad Lily Tom park ball tree house red sun 12 7 2024 he she it they him her said ran café zebra lion"
ENDS = [". ", ", ", "! ", " ", " ", " ", " ", " "]
HELDOUT = 0.3


class Planted(NamedTuple):
    store: PlantedStore
    sae: SAE
    features: dict[str, int]
    """Label method -> the feature that follows a rule of it."""
    effects: Measured
    """What a clamp causes: feature 11 the first tokens of " park" and " ball"."""


def documents(n: int, seed: int = 0) -> list[str]:
    """Texts of 20 to 60 words; "zebra" and "lion" stand in few of them."""
    random, words = np.random.default_rng(seed), _WORDS.split()
    found = []
    for _ in range(n):
        chosen = [str(word) for word in random.choice(words[:-2], random.integers(20, 60))]
        for word in ("zebra", "lion"):
            if random.random() < 0.2:
                chosen[int(random.integers(len(chosen)))] = word
        found.append("".join(word + str(random.choice(ENDS)) for word in chosen).strip())
    return found


def plant(lm: LanguageModel, *, n: int = 150, seed: int = 0) -> Planted:
    """Features 2 to 11 follow one rule each; the others fire at random."""
    random = np.random.default_rng(seed)
    batches = list(token_batches(lm, Corpus.open(documents(n, seed)), context=64, n_tokens=None, batch_size=4, packing="pack"))
    keep = [batch.mask_BT.bool() for batch in batches]
    tokens, position, document = (
        torch.cat([getattr(batch, name)[k] for batch, k in zip(batches, keep)]).numpy()
        for name in ("tokens_BT", "position_BT", "document_BT")
    )
    special = np.isin(tokens, list(lm.special_ids))
    sae = _sae(lm, tokens[~special])
    read = _Read(lm, tokens, position, document, special)
    features = {"words": 2, "peaks": 2, "pieces": 3, "class": 4, "before": 5, "context": 6, "promotes": 7, "word_class": 8}
    features |= {"says": 9, "contrast": 10, "causes": 11}
    caused = [int(lm.encode([text], bos=False)[0][0][0]) for text in (" park", " ball")]
    frequent = int(np.bincount(tokens[~special]).argmax())
    pushed = promoted(lm, sae.W_dec[[7]])[0].item[:4].tolist()
    fires: dict[int, Callable[[], NDArray[np.bool_]]] = {
        2: lambda: read.words("happy|sad"),
        3: lambda: tokens == frequent,
        4: lambda: read.words("[0-9]+"),
        5: lambda: read.before("dog"),
        6: lambda: read.near("zebra", 31, 16),
        7: lambda: read.next_token(pushed),
        8: lambda: read.words("he|she|it|they|him|her"),
        9: lambda: read.before("cat"),
        11: lambda: read.next_token(caused),
        10: lambda: read.near("zebra", 31, 16) | read.near("lion", 31, 16),
    }
    acts = np.where(random.random((len(tokens), F)) < 0.05, 1 + random.random((len(tokens), F)), 0)
    for feature, rule in fires.items():
        acts[:, feature] = np.where(rule() & ~special, 1 + random.random(len(tokens)), 0)
    acts[:, 0] = 0
    columns = tokens.astype(np.int32), position.astype(np.int32), document.astype(np.int64), special, acts.astype(np.float32)
    tokens_FK = np.full((F, len(caused)), -1)
    tokens_FK[11] = caused
    ones = np.ones(tokens_FK.shape)
    effects = Measured("effects", {}, {}, tokens={"causes": TokenRows(tokens_FK, ones, ones, ones)})
    return Planted(PlantedStore(*columns, f"labels {seed} {n}"), sae, features, effects)


def _sae(lm: LanguageModel, tokens: NDArray[np.integer]) -> SAE:
    """The code is the positive part of the input. Feature 7 promotes frequent tokens, feature 9 the token " cat"."""
    W_dec = torch.nn.functional.normalize(torch.randn(F, F, generator=torch.Generator().manual_seed(0)), dim=1)
    frequent = np.argsort(-np.bincount(tokens))[:4].tolist()
    W_dec[7] = torch.nn.functional.normalize(lm.W_U[:, frequent].detach().float().sum(1), dim=0)
    cat = int(lm.encode([" cat"], bos=False)[0][0][0])
    W_dec[9] = torch.nn.functional.normalize(lm.W_U[:, cat].detach().float(), dim=0)
    tensors = {"W_enc": torch.eye(F), "W_dec": W_dec, "b_enc": torch.zeros(F), "b_dec": torch.zeros(F)}
    return SAE(SAEConfig("standard", d_in=F, n_latents=F, site_map=SITE), tensors)


class _Read:
    """Finds tokens by regular expressions on the text of each part of a document in a context."""

    def __init__(
        self,
        lm: LanguageModel,
        tokens: NDArray[np.integer],
        position: NDArray[np.integer],
        document: NDArray[np.integer],
        special: NDArray[np.bool_],
    ) -> None:
        begins = np.flatnonzero((position == 0) | (np.diff(document, prepend=-1) != 0)).tolist()
        self._n, self._tokens = len(tokens), tokens
        self._pieces = []
        for first, end in zip(begins, [*begins[1:], len(tokens)]):
            rows = [row for row in range(first, end) if not special[row]]
            raw = [lm.decode([int(tokens[row])]) for row in rows]
            ends = np.cumsum([len(each.encode()) if "\ufffd" not in each else 1 for each in raw])
            self._pieces.append((rows, lm.decode(tokens[rows].tolist()).encode(), ends))

    def _found(self, pattern: str) -> list[tuple[list[int], list[int]]]:
        """For each whole word that matches: the rows of its piece, and places of its tokens among them."""
        found = []
        for rows, text, ends in self._pieces:
            for match in re.finditer(rf"(?<![\w']){pattern}(?![\w'])".encode(), text):
                inside = [i for i, end in enumerate(ends) if end > match.start() and (ends[i - 1] if i else 0) < match.end()]
                found.append((rows, inside))
        return found

    def words(self, pattern: str) -> NDArray[np.bool_]:
        """The tokens of words."""
        mark = np.zeros(self._n, bool)
        for rows, inside in self._found(f"(?:{pattern})"):
            mark[[rows[i] for i in inside]] = True
        return mark

    def before(self, word: str) -> NDArray[np.bool_]:
        """The token before a word, in the same piece."""
        mark = np.zeros(self._n, bool)
        for rows, inside in self._found(word):
            if inside[0] > 0:
                mark[rows[inside[0] - 1]] = True
        return mark

    def near(self, word: str, before: int, after: int) -> NDArray[np.bool_]:
        """Tokens with the first token of a word at most `before` tokens before or `after` after them, besides its own tokens."""
        mark = np.zeros(self._n, bool)
        for rows, inside in self._found(word):
            first, own = rows[inside[0]], {rows[i] for i in inside}
            mark[[row for row in rows if first - after <= row <= first + before and row not in own]] = True
        return mark

    def next_token(self, wanted: list[int]) -> NDArray[np.bool_]:
        """Tokens that one of some tokens follows in the same piece."""
        mark = np.zeros(self._n, bool)
        for rows, _, _ in self._pieces:
            for row in rows:
                mark[row] = row + 1 in rows and int(self._tokens[row + 1]) in wanted
        return mark
