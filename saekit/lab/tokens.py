"""Tokenisation with character offsets, by the laboratory's tokenizer or any other fast one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from saekit.builtin import model_folder
from saekit.errors import ConfigError

Offsets = Sequence[tuple[int, int]]


class Encoded(NamedTuple):
    """Token ids of texts, without BOS, and the characters `start:end` that each token covers."""

    ids: list[list[int]]
    offsets: list[Offsets]


@cache
def lab_tokenizer() -> Any:
    """The packaged model's tokenizer (a `tokenizers.Tokenizer`).

    Raises:
        ModelNotFound: the files of the packaged model are missing.
    """
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(model_folder() / "tokenizer.json"))


@cache
def lab_bos() -> int | None:
    """The BOS id of the packaged model."""
    settings = json.loads((model_folder() / "tokenizer_config.json").read_text())
    token = settings.get("bos_token")
    return None if token is None else lab_tokenizer().token_to_id(token["content"] if isinstance(token, dict) else token)


def encode(texts: Sequence[str], tokenizer: Any = None) -> Encoded:
    """Tokenise `texts` without special tokens.

    Args:
        tokenizer: a fast tokenizer of transformers or a `tokenizers.Tokenizer`. None means the laboratory's.

    Raises:
        ConfigError: the tokenizer gives no character offsets.
    """
    tokenizer = lab_tokenizer() if tokenizer is None else tokenizer
    if not texts:
        return Encoded([], [])
    if hasattr(tokenizer, "encode_batch"):
        found = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return Encoded([each.ids for each in found], [each.offsets for each in found])
    try:
        batch = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    except NotImplementedError as error:
        raise ConfigError(f"{type(tokenizer).__name__} gives no character offsets of tokens.", "Use a fast tokenizer.") from error
    return Encoded(batch["input_ids"], batch["offset_mapping"])
