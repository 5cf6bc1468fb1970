"""Chats as tokens: the tokenizer's chat template, and which of the tokens are trained on."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from saekit.errors import ConfigError
from saekit.lm.tokenization import Text

TrainOn = Literal["all", "assistant", "content"]
TRAIN_ON: tuple[TrainOn, ...] = get_args(TrainOn)
Messages = Sequence[Mapping[str, Any]]
Span = tuple[int, int]

DATE = "26 Jul 2024"
"""The date that templates write. Llama's have it as their default. A template that wrote today's date would give other tokens
tomorrow, so that a store could not be continued."""
_DAY = {"%d": "26", "%e": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24", "%A": "Friday", "%a": "Fri"}
_TODAY = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f' | replace("{code}", "{value}")' for code, value in _DAY.items())
    + " }}{%- endmacro -%}"
)
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_TAG = re.compile(r"</?[A-Za-z_|][^<>\s]{0,40}>")
_TEXTS = ("content", "reasoning_content", "thinking", "reasoning")
"""Fields of a message that hold what its speaker says."""
_PLANES = (0xF0000, 0x100000)  # of characters for private use, which text does not have
_ALL = "Train on all tokens (--train-on all), or leave such chats out (--records)."


class ChatTokens(NamedTuple):
    """A chat of n tokens."""

    ids: list[int]
    chosen: np.ndarray
    """(n,) bool: True at the tokens to train on."""


@dataclass(frozen=True)
class _Piece:
    """A part of what one message says, with white space at neither end."""

    message: int
    place: tuple[str | int, ...]
    """Keys that lead to the text in the message."""
    start: int
    stop: int


class ChatTemplate:
    """The chat template of a tokenizer. The tokens are those of `tokenizer.apply_chat_template(messages)`; see
    :meth:`render` for null contents.

    Args:
        text: the tokenizer.

    Raises:
        ConfigError: the tokenizer has no chat template, or several without a default.
    """

    def __init__(self, text: Text) -> None:
        self._text = text
        try:
            self.source: str = text.tokenizer.get_chat_template()
        except (ValueError, AttributeError) as error:
            raise ConfigError(
                "The tokenizer has no chat template, so that chats cannot become tokens.",
                "Use a model for chats, set tokenizer.chat_template, or name a field that holds text (--text-field).",
            ) from error

    @property
    def sha256(self) -> str:
        """SHA-256 of the template."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @cached_property
    def _template(self) -> str:
        return (_TODAY if "strftime_now" in self.source else "") + self.source

    def render(self, messages: Messages, *, to_answer: bool = False) -> str:
        """The text of a chat, BOS included where the template writes it.

        Nulls are dropped, as the tokenizer does. A template that refuses a chat without a null content is given the null.

        Args:
            to_answer: end with what stands before an answer of the assistant.

        Raises:
            ConfigError: the template refuses the messages.
        """
        try:
            return self._text.tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                chat_template=self._template,
                date_string=DATE,
                add_generation_prompt=to_answer,
            )
        except Exception as error:  # whatever the code of a template raises
            empty = [number for number, message in enumerate(messages) if message.get("content", "") is None]
            if empty:  # the tokenizer drops nulls, and some templates take null but no missing content
                with contextlib.suppress(Exception):
                    return self._by_template(messages)[0]
            reason = f"{error}; content is null in message {', '.join(map(str, empty))}" if empty else error
            raise ConfigError(
                f"The chat template refuses these messages: {reason}.", "Correct them, or leave such chats out (--records)."
            ) from error

    def tokens(self, messages: Messages, train_on: TrainOn = "all") -> ChatTokens:
        """The tokens of a chat, and which of them to train on: those with a character in :meth:`spans`.

        Raises:
            ConfigError: see :meth:`spans`; or the tokenizer does not tell where in the text its tokens are.
        """
        rendered = self.render(messages)
        (tokens,) = self.encode([rendered], None if train_on == "all" else [self.spans(messages, rendered, train_on)])
        return tokens

    def encode(self, rendered: Sequence[str], spans: Sequence[Sequence[Span]] | None) -> list[ChatTokens]:
        """The tokens of the texts of chats.

        Args:
            rendered: what :meth:`render` gave.
            spans: for each text the parts to train on; None trains on all tokens.

        Raises:
            ConfigError: there are spans, and the tokenizer does not tell where in the text its tokens are.
        """
        if spans is None:
            return [ChatTokens(ids, np.ones(len(ids), bool)) for ids in self._text.plain_ids(rendered)]
        found = []
        for text, parts, encoding in zip(
            rendered, spans, self._with_places.encode_batch(list(rendered), add_special_tokens=False)
        ):
            wanted = np.zeros(len(text), np.int64)
            for start, stop in parts:
                wanted[start:stop] = 1
            before = np.concatenate([[0], wanted.cumsum()])  # wanted characters before each place
            start_n, stop_n = np.asarray(encoding.offsets, np.int64).reshape(-1, 2).T
            found.append(ChatTokens(encoding.ids, before[stop_n] > before[start_n]))
        return found

    def spans(self, messages: Messages, rendered: str, train_on: TrainOn) -> list[Span]:
        """Where in the text of a chat the characters to train on are: (start, stop) of each part, in order.

        `all` is the whole text. `content` is what the messages say: not the roles, the markers and the system prompt that the
        template writes. `assistant` is the part of this that the assistant says; or what the template itself marks as such by
        `{% generation %}`, where it does.

        The messages are rendered a second time with marks of private characters around what they say. Without its marks, the
        result must be the text of the chat, character by character: this proves that the marks stand where the content does.
        White space at the ends of a content is part of it where the template keeps it.

        Raises:
            ConfigError: the template refuses the messages, or changes what they say so that its parts cannot be told apart.
        """
        if train_on == "all":
            return [(0, len(rendered))]
        if train_on == "assistant":
            if _GENERATION.search(self.source):
                return self._generated(messages, rendered)
            if any(message.get("tool_calls") or message.get("function_call") for message in messages):
                raise ConfigError("The template does not mark what the assistant says, and a message calls a tool.", _ALL)
        for pieces in (self._pieces(messages, None), self._pieces(messages, _TAG)):
            if (found := self._marked(messages, rendered, pieces)) is not None:
                wanted = [(piece, span) for piece, span in found if train_on == "content" or _speaks(messages[piece.message])]
                return sorted(self._with_edges(messages, rendered, piece, span) for piece, span in wanted)
        raise ConfigError(f"The chat template changes what messages say, so that {train_on!r} tokens cannot be told apart.", _ALL)

    def _generated(self, messages: Messages, rendered: str) -> list[Span]:
        """What the template marks by `{% generation %}`."""
        without_nulls = [{key: value for key, value in message.items() if value is not None} for message in messages]
        for given in (without_nulls, messages):
            with contextlib.suppress(Exception):  # render() used the other one
                text, spans = self._by_template(given, marks=True)
                if text == rendered:
                    return spans
        raise ConfigError("The chat template gives another text where it marks what the assistant says.", _ALL)

    def _by_template(self, messages: Messages, *, marks: bool = False) -> tuple[str, list[Span]]:
        """The text of a chat whose nulls the template sees, and, with `marks`, what it marks by `{% generation %}`."""
        from transformers.utils.chat_template_utils import render_jinja_template

        texts, spans = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            chat_template=self._template,
            return_assistant_tokens_mask=marks,
            date_string=DATE,
            **self._text.tokenizer.special_tokens_map,
        )
        return texts[0], [(int(start), int(stop)) for start, stop in spans[0]] if marks else []

    def _pieces(self, messages: Messages, split: re.Pattern[str] | None) -> list[_Piece]:
        """What messages say, whole, or split at the tags (as <think>) that the template names, which it may move or drop."""
        pieces = []
        for number, place, text in _texts(messages):
            cuts = [] if split is None else [found for found in split.finditer(text) if found[0] in self.source]
            edges = [0, *(edge for found in cuts for edge in found.span()), len(text)]
            for start, stop in zip(edges[::2], edges[1::2]):
                part = text[start:stop]
                core = part.strip()
                if core or (part and split is None):  # of white space alone, only its place is known so far
                    first = start + len(part) - len(part.lstrip())
                    pieces.append(_Piece(number, place, first, first + len(core)))
        return pieces

    def _marked(self, messages: Messages, rendered: str, pieces: Sequence[_Piece]) -> list[tuple[_Piece, Span]] | None:
        """Where pieces are in `rendered`; None where marking them changes the text."""
        base = next((plane for plane in _PLANES if not any(plane <= ord(char) < plane + 0xFFFE for char in rendered)), None)
        if base is None or 2 * len(pieces) > 0xFFF0:
            return None
        marked = copy.deepcopy([dict(message) for message in messages])
        for number, piece in reversed(list(enumerate(pieces))):  # from the end, so that the places before stay
            text = _at(marked[piece.message], piece.place)
            begin, end = chr(base + 2 * number), chr(base + 2 * number + 1)
            text = text[: piece.start] + begin + text[piece.start : piece.stop] + end + text[piece.stop :]
            _put(marked[piece.message], piece.place, text)
        try:
            result = self.render(marked)
        except ConfigError:
            return None
        found: list[tuple[_Piece, Span]] = []
        parts: list[str] = []
        length, opened = 0, None
        for part in re.split(f"([{chr(base)}-{chr(base + 0xFFFD)}])", result):
            if not (len(part) == 1 and base <= ord(part) <= base + 0xFFFD):
                parts.append(part)
                length += len(part)
                continue
            number, closes = divmod(ord(part) - base, 2)
            if (opened is not None) != bool(closes) or (opened is not None and opened[0] != number):
                return None  # the template keeps one mark of a piece and drops the other
            if opened is not None:
                found.append((pieces[number], (opened[1], length)))
            opened = None if closes else (number, length)
        return found if opened is None and "".join(parts) == rendered else None

    def _with_edges(self, messages: Messages, rendered: str, piece: _Piece, span: Span) -> Span:
        """The span of a piece with the white space at the ends of the text that it is, where the template keeps that."""
        text = _at(messages[piece.message], piece.place)
        if text.strip() != text[piece.start : piece.stop]:  # a part of a text: a tag is beside it
            return span
        lead, trail = text[: piece.start], text[piece.stop :]
        before = self._kept(messages, rendered, piece, text[piece.start :]) if lead else 0
        after = self._kept(messages, rendered, piece, text[: piece.stop]) if trail else 0
        start, stop = span[0] - before, span[1] + after
        # What a template strips is at the outer ends.
        if not (
            0 <= before <= len(lead)
            and 0 <= after <= len(trail)
            and rendered[start : span[0]] == lead[len(lead) - before :]
            and rendered[span[1] : stop] == trail[:after]
        ):
            raise ConfigError("The chat template changes white space at the ends of what a message says.", _ALL)
        return start, stop

    def _kept(self, messages: Messages, rendered: str, piece: _Piece, without: str) -> int:
        """How many characters the text of a chat loses where the text that holds a piece is shortened to `without`."""
        other = copy.deepcopy([dict(message) for message in messages])
        _put(other[piece.message], piece.place, without)
        return len(rendered) - len(self.render(other))

    @cached_property
    def _with_places(self) -> Any:
        return with_places(self._text)


def with_places(text: Text) -> Any:
    """A copy of the core of a tokenizer that gives tokens their places in the text, white space included.

    Raises:
        ConfigError: the tokenizer is a slow one, which does not tell places.
    """
    from tokenizers import processors

    tokenizer = text.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            "A slow tokenizer does not tell where in the text its tokens are.",
            "Use a fast one, or all tokens: --train-on all, texts without marks.",
        )
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    # The post-processor adds special tokens, which are not wanted, and may take white space out of the places of tokens.
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def _speaks(message: Mapping[str, Any]) -> bool:
    return message["role"] in ("assistant", "model")


def _texts(messages: Messages) -> Iterator[tuple[int, tuple[str | int, ...], str]]:
    """(number of the message, keys, text) of everything that messages say."""
    for number, message in enumerate(messages):
        for name in _TEXTS:
            value = message.get(name)
            if isinstance(value, str):
                yield number, (name,), value
            elif isinstance(value, list | tuple):
                for index, part in enumerate(value):
                    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
                        yield number, (name, index, "text"), part["text"]


def _at(message: Any, place: tuple[str | int, ...]) -> str:
    for key in place:
        message = message[key]
    return message


def _put(message: Any, place: tuple[str | int, ...], text: str) -> None:
    for key in place[:-1]:
        message = message[key]
    message[place[-1]] = text
