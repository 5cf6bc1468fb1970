"""Asking until an answer can be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from feature_db.chat.model import ChatModel, Messages, NoAnswer, Usage

Read = TypeVar("Read")
_SHOWN = 300  # characters of an answer that cannot be read, in the next question


class Nonsense(ValueError):
    """An answer that cannot be read; the message says what is wrong with it."""


async def ask(
    model: ChatModel, messages: Messages, read: Callable[[str], Read], *, max_tokens: int, tries: int, usage: Usage
) -> Read:
    """What `read` makes of the answer. An answer that it cannot read is sent back with what is wrong.

    At most `tries` replies are paid for, whatever the model does.

    Args:
        model: answers.
        messages: the question.
        read: raises :class:`Nonsense` where it cannot read an answer.
        max_tokens: most tokens of an answer.
        tries: questions in all.
        usage: counts requests and tokens, those without an answer too.

    Raises:
        NoAnswer: there is no answer, or none that can be read. `too_long` is set only where nothing was paid for.
        EndpointError: no request can succeed.
    """
    sent, wrong = list(messages), ""
    for i in range(tries):
        try:
            answer = await model.answer(sent, max_tokens)
        except NoAnswer as error:
            usage.add(error.usage)
            if error.replied and error.again:
                wrong = error.reason
                continue
            if error.too_long and i:
                raise NoAnswer(error.reason) from error
            raise
        usage.add(answer)
        try:
            return read(answer.text)
        except Nonsense as error:
            said = " ".join(answer.text.split())[:_SHOWN]
            wrong = f"{error}: {said[:100]!r}"
            again = f"This cannot be read: {error}. Answer again, exactly in the form that was asked for, and with nothing else."
            sent = [*messages, {"role": "assistant", "content": said or "..."}, {"role": "user", "content": again}]
    raise NoAnswer(f"no usable answer in {tries} tries; the last: {wrong}")
