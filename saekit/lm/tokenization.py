"""Text to tokens and back, in one way for all tokenizers."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from saekit.errors import ConfigError
from saekit.lm.padding import Padded, Side, pad

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Text:
    """A tokenizer, with the special tokens that it and the model's configurations name.

    Args:
        tokenizer: a Hugging Face tokenizer, or None for a model that is used with token ids only.
        configs: the model's configurations. Their bos, eos and pad ids are special too.
        bos: whether texts begin with BOS: "auto" is what the tokenizer itself does, "yes", "no", or "any", which is yes wherever
            the tokenizer has a BOS.

    Raises:
        ConfigError: `bos` is "yes", and the tokenizer has no BOS.
    """

    def __init__(self, tokenizer: Any, configs: Sequence[Any] = (), bos: str = "auto") -> None:
        self._tokenizer = tokenizer
        self._configs = configs
        self._bos = bos
        if bos == "yes" and tokenizer is not None and tokenizer.bos_token_id is None:
            raise ConfigError("BOS is asked for, and the tokenizer has none.", "Choose --bos auto or --bos no (in Python: bos=).")

    @property
    def tokenizer(self) -> Any:
        """The tokenizer.

        Raises:
            ConfigError: the model was attached without one.
        """
        if self._tokenizer is None:
            raise ConfigError("This model has no tokenizer.", "Give one to LanguageModel.attach, or work with token ids.")
        return self._tokenizer

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of BOS, EOS, PAD and other tokens that stand for no text."""
        ids: set[int] = set()
        if self._tokenizer is not None:
            ids.update(self._tokenizer.all_special_ids)
            added = getattr(self._tokenizer, "added_tokens_decoder", {})
            ids.update(index for index, token in added.items() if getattr(token, "special", False))
        for config in self._configs:
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                value = getattr(config, name, None)
                ids.update(value if isinstance(value, list | tuple) else [] if value is None else [value])
        return frozenset(index for index in ids if index >= 0)

    @cached_property
    def bos_token_id(self) -> int | None:
        """The id of the token with which every text begins; None where texts begin with their first word."""
        if self._tokenizer is None or self._bos == "no":
            return None
        return self._added_bos() if self._bos == "auto" else self._tokenizer.bos_token_id

    def _added_bos(self) -> int | None:
        """The id that the tokenizer itself puts before a text; None where it puts none, or more than one."""
        backend = self._backend
        if backend is not None:
            with_special, plain = (backend.encode("a", add_special_tokens=each).ids for each in (True, False))
        else:
            with_special, plain = (list(self._tokenizer("a", add_special_tokens=each)["input_ids"]) for each in (True, False))
        return with_special[0] if len(with_special) > len(plain) and with_special[1 : 1 + len(plain)] == plain else None

    @property
    def template_bos(self) -> int | None:
        """The id that is taken off a chat where its template writes it: :attr:`bos_token_id` says whether it comes back."""
        return self._tokenizer.bos_token_id if self._bos == "no" and self._tokenizer is not None else self.bos_token_id

    @property
    def has_bos(self) -> bool:
        """Whether the tokenizer has a BOS, added or not."""
        return self._tokenizer is not None and self._tokenizer.bos_token_id is not None

    @property
    def pad_token_id(self) -> int:
        """The id that fills short rows. Pads are masked, so any id would do."""
        ids = [] if self._tokenizer is None else [self._tokenizer.pad_token_id, self._tokenizer.eos_token_id]
        return next((index for index in ids if index is not None), 0)

    def ids(self, texts: Sequence[str], *, bos: bool | None = None) -> list[list[int]]:
        """Token ids of each text, with BOS exactly once where texts begin with it.

        Args:
            texts: the texts; one may hold the text of BOS itself, as chat templates write it.
            bos: None: as :attr:`bos_token_id` says. True: with the tokenizer's BOS, if it has one. False: none is added.
        """
        rows = self.plain_ids(texts)
        if bos is False:
            return rows
        first = self._tokenizer.bos_token_id if bos else self.bos_token_id
        return [self.begun(row, first) for row in rows]

    @staticmethod
    def begun(ids: Sequence[int], bos: int | None) -> list[int]:
        """The ids with `bos` before them, exactly once; None adds nothing."""
        return list(ids) if bos is None or (len(ids) and ids[0] == bos) else [bos, *ids]

    def plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without added special tokens. Truncation and padding of the tokenizer do not matter."""
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"{texts!r:.60} cannot be tokenised.", "Give a list of texts.")
        if not texts:
            return []
        try:
            if self._backend is not None:
                return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
            return self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        except (TypeError, UnicodeEncodeError) as error:
            wrong = next((text for text in texts if _has_surrogates(text)), None)
            if wrong is None:
                raise
            raise ConfigError(
                f"{wrong!r:.60} holds characters that are not valid Unicode.", "Decode the bytes again, with the right encoding."
            ) from error

    @cached_property
    def _backend(self) -> Any:
        """A copy of a fast tokenizer's core that no other code changes; None for a slow tokenizer.

        Calls of the tokenizer itself switch truncation and padding of its core, which other threads may be using. Besides, the
        core alone is twice as fast.
        """
        if not getattr(self.tokenizer, "is_fast", False):
            return None
        backend = copy.deepcopy(self.tokenizer.backend_tokenizer)
        backend.no_truncation()
        backend.no_padding()
        return backend

    def pad(self, rows: Sequence[Sequence[int]], side: Side) -> Padded:
        """Rows of ids as one (B, T) tensor with `pad_token_id` at pads, and the mask that is 1 at real tokens."""
        return pad(rows, side, self.pad_token_id)

    def batches(self, rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[Padded]:
        """The rows in the order given, `batch_size` at a time, with pads on the right."""
        for start in range(0, len(rows), batch_size):
            yield self.pad(rows[start : start + batch_size], "right")

    def decode(self, ids: Iterable[int] | Tensor, *, skip_special: bool = False) -> str:
        """The text of `ids`."""
        return self.tokenizer.decode(_listed(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)

    def continuation(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """The text that `ids` add to a prompt. They are decoded with it, because many tokenizers drop a leading space."""
        before = self.decode(prompt, skip_special=True)
        whole = self.decode([*prompt, *ids], skip_special=True)
        return whole[len(before) :] if whole.startswith(before) else self.decode(ids, skip_special=True)

    def token_strings(self, ids: Iterable[int] | Tensor) -> list[str]:
        """Each token as text to show: spaces as spaces, incomplete characters as bytes like `\\xe2`."""
        return [self._show(piece) for piece in self.tokenizer.convert_ids_to_tokens(_listed(ids))]

    def _show(self, piece: str | bytes | None) -> str:
        if piece is None:
            return ""
        if isinstance(piece, bytes):
            return _readable(piece)
        if match := _BYTE.fullmatch(piece):
            return _readable(bytes([int(match[1], 16)]))
        if self._byte_level and all(char in _BYTE_OF_CHAR for char in piece):
            return _readable(bytes(_BYTE_OF_CHAR[char] for char in piece))
        return piece.replace("▁", " ")

    @cached_property
    def _byte_level(self) -> bool:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return backend is not None and "ByteLevel" in json.dumps(json.loads(backend.to_str()).get("decoder"))

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that decides how text becomes ids."""
        if self._tokenizer is None:
            return hashlib.sha256(b"none").hexdigest()
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is not None:
            content = json.loads(backend.to_str())
            # Left over from the last call that padded or truncated.
            content = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
        else:
            content = {"vocab": self._tokenizer.get_vocab()}
        content["bos"] = self._tokenizer.bos_token_id
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _listed(ids: Iterable[int] | Tensor) -> list[int]:
    listed = ids.flatten().tolist() if isinstance(ids, Tensor) else [int(index) for index in ids]
    if any(index < 0 for index in listed):
        raise ConfigError(f"{min(listed)} is not a token id.", "Ids count from 0.")
    return listed


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _readable(data: bytes) -> str:
    return data.decode("utf-8", errors="backslashreplace")


def _byte_characters() -> dict[str, int]:
    # The printable characters that byte-level BPE uses for bytes (Radford et al. 2019, `bytes_to_unicode`).
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_characters()
