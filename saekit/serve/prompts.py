"""Prompts of requests as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from saekit.errors import ConfigError

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


class ChatPrompt(NamedTuple):
    """A chat as the prompt of its next answer."""

    ids: tuple[int, ...]
    stop: tuple[str, ...]
    """Texts at which the answer ends, besides the model's end-of-text token."""
    format: str
    """"template", or "lines" for a tokenizer without a chat template."""


def text_ids(lm: LanguageModel, text: str) -> tuple[int, ...]:
    """The ids of a text, with BOS where texts of the model begin with it."""
    return tuple(lm.text.ids([text])[0])


def chat_prompt(lm: LanguageModel, messages: Sequence[Mapping[str, str]]) -> ChatPrompt:
    """A chat as the prompt of its next answer, by the tokenizer's chat template.

    A tokenizer without a template has one line for each message, `User: ...`, and an answer ends where the user would speak.
    This is the format of the laboratory's chats.

    Raises:
        ConfigError: the template refuses the messages.
    """
    from saekit.lm.chat import ChatTemplate

    if has_template(lm):
        return ChatPrompt(text_ids(lm, ChatTemplate(lm.text).render(messages, to_answer=True)), (), "template")
    lines = [f"{_NAMES[message['role']]}: {message['content']}" for message in messages]
    return ChatPrompt(text_ids(lm, "\n".join([*lines, "Assistant:"])), ("\nUser:", "\nSystem:"), "lines")


def has_template(lm: LanguageModel) -> bool:
    """Whether the tokenizer has a chat template."""
    from saekit.lm.chat import ChatTemplate

    try:
        return bool(ChatTemplate(lm.text).source)
    except ConfigError:
        return False
