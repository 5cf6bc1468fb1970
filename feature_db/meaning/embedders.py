"""Embedders: functions from texts to vectors, in which texts of similar meaning are near each other.

An embedder is a class with the members of :class:`Embedder`, and a row of :data:`EMBEDDERS`, a function that loads it::

    EMBEDDERS.register("mine", lambda: MyEmbedder())
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from saekit.errors import ConfigError
from saekit.plugins import Registry

DEFAULT = "wordllama"
KNOWN = re.compile(r"[0-9A-Za-z\u00c0-\u024f]")
"""Letters of the Latin script, and digits."""


class Embedder(Protocol):
    """Maps texts to vectors."""

    name: str
    """Stored with the vectors, so that queries are embedded the same way. Where an embedder also has a `version`, vectors of
    another version are made again."""
    width: int
    by_pieces: bool
    """Whether it knows words by their pieces only, so that the vector of an unknown word is chance."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, width) vectors of length 1; zero for a text without any known part."""
        ...


class WordLlama:
    """The 256-dimensional static embeddings of the wordllama package (32,000 tokens, distilled from large language models).

    A text is the mean of the vectors of its tokens. A text without a letter of the Latin script or a digit has no vector: the
    embeddings know no other script, and near words would be chance. The files are read from the installed package: wordllama's
    own loader looks for the tokenizer on the network.
    """

    name = "wordllama"
    width = 256
    by_pieces = True

    def __init__(self) -> None:
        from importlib.metadata import version

        from safetensors.numpy import load
        from tokenizers import Tokenizer

        self.version = version("wordllama")
        # Importing the package would take longer than a search.
        package = find_spec("wordllama")
        assert package is not None and package.origin is not None
        root = Path(package.origin).parent
        self._vectors = load((root / "weights/l2_supercat_256.safetensors").read_bytes())["embedding.weight"]
        tokenizer = (root / "tokenizers/l2_supercat_tokenizer_config.json").read_text(encoding="utf-8")
        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._tokenizer.no_padding()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        known = [each.ids if KNOWN.search(text) else [] for text, each in zip(texts, encoded)]
        lengths = np.array([len(each) for each in known], np.int64)
        ids = np.array([i for each in known for i in each], np.int64)
        sums = np.zeros((len(encoded), self.width), np.float32)
        filled = lengths > 0
        if filled.any():
            starts = np.concatenate([[0], np.cumsum(lengths[filled])[:-1]])
            sums[filled] = np.add.reduceat(self._vectors[ids].astype(np.float32), starts, axis=0)
        return unit(sums)


class SentenceTransformer:
    """A model of the sentence-transformers package, from a folder or by its name on the Hugging Face hub."""

    by_pieces = False

    def __init__(self, model: str) -> None:
        from importlib.metadata import version

        try:
            from sentence_transformers import SentenceTransformer as Model
        except ImportError as error:
            raise ConfigError(
                "sentence-transformers is not installed, and the embedder needs it.", "pip install 'saekit[embed]'."
            ) from error
        self.name = f"sentence-transformers:{model}"
        self.version = version("sentence-transformers")
        try:
            self._model = Model(model)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"The embedder {self.name} cannot be loaded: {error}",
                "Check the name or the folder of the model, and the network where it is not on this machine.",
            ) from error
        self.width = int(self._model.get_sentence_embedding_dimension() or 0)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return unit(np.asarray(self._model.encode(list(texts), show_progress_bar=False), np.float32))


EMBEDDERS: Registry[Callable[..., Embedder]] = Registry(
    "embedder", {DEFAULT: WordLlama, "sentence-transformers": SentenceTransformer}
)
"""Embedders by name: the part of :attr:`Embedder.name` before a colon. What follows the colon is passed to the row."""


@cache
def embedder(name: str = DEFAULT) -> Embedder:
    """The embedder of this name, such as `wordllama` or `sentence-transformers:all-MiniLM-L6-v2`. It is loaded once.

    Raises:
        ConfigError: there is no such embedder, its package is not installed, or it cannot be loaded.
    """
    kind, _, argument = name.partition(":")
    load = EMBEDDERS.find(kind)
    return load(argument) if argument else load()


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows scaled to length 1; zero rows stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
