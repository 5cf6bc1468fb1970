"""What scorers work with: a dictionary, its model, and held-out texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from feature_db.scorers.examples import Examples, HeldoutExample, examples
from feature_db.scorers.given import Given
from feature_db.scorers.heldout import Heldout
from feature_db.scorers.neighbours import Neighbours

if TYPE_CHECKING:
    from feature_db.records import IndexedSAE
    from saekit.lm import LanguageModel
    from saekit.sae import SAE

LEAST_TOKENS, LEAST_DOCUMENTS = 5, 2
"""A feature that fires on fewer held-out tokens, or in fewer held-out documents, is not scored."""


@dataclass
class Subject:
    """What a scorer gets.

    Attributes:
        lm: the studied model.
        sae: the dictionary.
        indexed: what the database records about the dictionary.
        heldout: documents that the index did not count, with the activations of all features.
        vectors: (n_features, d_out) decoder directions.
        options: what the user set for scorers, by name.
        seed: of all random choices.
        progress: whether progress bars are shown.
    """

    lm: LanguageModel
    sae: SAE
    indexed: IndexedSAE
    heldout: Heldout
    vectors: NDArray[np.float32]
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    progress: bool = True

    @cached_property
    def neighbours(self) -> Callable[[int], NDArray[np.int64]]:
        """Features that fire together with a feature, or have similar decoder directions, by its number."""
        return Neighbours(self.heldout.codes, self.vectors)

    def too_few(self, feature: int) -> str:
        """Why a feature cannot be scored: it fires on too few held-out tokens or documents. Empty if it can."""
        rows = self.heldout.codes.rows(feature)
        documents = len(np.unique(self.heldout.place_N[rows]))
        if len(rows) >= LEAST_TOKENS and documents >= LEAST_DOCUMENTS:
            return ""
        return f"the feature fires on {len(rows)} held-out tokens in {documents} documents"

    def examples(self, feature: int, n: int, *, before: int = 31, after: int = 16) -> Examples:
        """Held-out texts of a feature: up to `n` each on which it fires, random ones, and hard ones; the same for each call.

        Args:
            n: texts of each kind.
            before, after: tokens around the chosen token of each text, at most.
        """
        return examples(self.heldout, self.neighbours, feature, n, seed=self.seed, before=before, after=after)

    def text(self, example: HeldoutExample, radius: int | None = None) -> str:
        """The text of an example, or only the tokens up to `radius` from the chosen one."""
        part = slice(None) if radius is None else slice(max(example.peak - radius, 0), example.peak + radius + 1)
        return self.lm.decode(example.token_ids[part].tolist())

    def said(self, label: Given) -> str:
        """What a label says, without the fixed words of templates: "dog cat" for "fires on 'dog', 'cat'"."""
        if label.rule is None or label.keywords:
            return label.keywords or label.text
        items = [item if isinstance(item, str) else self.lm.token_strings([item])[0].strip() for item in label.rule.items]
        return " ".join(items)
