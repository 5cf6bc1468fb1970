"""What endpoints reply, read with care: an endpoint may send anything."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from feature_db.chat.model import Answer, Messages, NoUsableReply, Usage, estimated_tokens, without_thoughts

MOST_BYTES = 1 << 20
"""Largest reply that is read."""
_TRANSIENT = (408, 409, 425, 429)
_TOO_LONG = re.compile(
    r"context[ _-]?(length|window|size)|maximum context|too many tokens|prompt is too long|exceeds? .*tokens", re.I
)
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached")


@dataclass(frozen=True)
class Reply:
    """What came back over HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Refusal:
    """What a reply that is no answer says."""

    message: str
    again: bool
    """Whether the same request may succeed later."""
    wait: float | None
    """Seconds to wait before, if the reply says so."""
    limited: bool
    """Whether there were too many requests."""
    too_long: bool
    """Whether the chat is longer than the model can read."""
    final: bool
    """Whether no request can succeed before somebody does something about it."""


def answer_of(reply: Reply, messages: Messages, clean: Callable[[str], str] = str) -> Answer:
    """The answer in a reply with status 200.

    Args:
        reply: what came.
        messages: the question, for the number of its tokens where the reply has none.
        clean: removes secrets from a reason, before it is shortened.

    Raises:
        NoUsableReply: it holds none. It has `again` unless the same question would end alike.
    """
    facts = _json(reply.body)
    if not isinstance(facts, dict):
        raise NoUsableReply(f"the reply is no JSON object: {_excerpt(clean(_text(reply.body)))}", again=True, usage=Usage(1))
    try:
        choice = facts["choices"][0]
        message = choice["message"]
        content = message["content"] if message.get("content") is not None else ""
    except (KeyError, IndexError, TypeError, AttributeError):
        reason = f"the reply has no choices with a message: {_excerpt(clean(_message(facts)))}"
        raise NoUsableReply(reason, again=True, usage=_spent(facts, Usage(1))) from None
    if isinstance(content, list):  # parts, as some servers have it
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    said = content if isinstance(content, str) else ""
    spent = _spent(facts, Usage(1, estimated_tokens(messages), estimated_tokens([{"content": said}])))
    if isinstance(message.get("refusal"), str) and message["refusal"]:
        raise NoUsableReply(f"the model refuses: {_excerpt(clean(message['refusal']))}", usage=spent)
    if not isinstance(content, str):
        raise NoUsableReply("the content of the reply is no text", again=True, usage=spent)
    text = without_thoughts(_unicode(content))
    if not text and choice.get("finish_reason") == "length":
        reason = "the answer is empty: all tokens that it may use went into thoughts. Raise --max-tokens"
        raise NoUsableReply(reason, usage=spent)
    if not text:
        raise NoUsableReply("the answer is empty", again=True, usage=spent)
    return Answer(text, spent.tokens_in, spent.tokens_out)


def refusal_of(reply: Reply, clean: Callable[[str], str] = str) -> Refusal:
    """What a reply with another status than 200 says; `clean` removes secrets from it, before it is shortened."""
    facts = _json(reply.body)
    message = _message(facts) if isinstance(facts, dict) else _text(reply.body)
    error = facts.get("error") if isinstance(facts, dict) else None
    codes = [str(error.get(name)) for name in ("code", "type")] if isinstance(error, dict) else []
    limited = reply.status == 429 or (reply.status == 503 and "retry-after" in reply.headers)
    too_long = reply.status in (400, 413, 422) and ("context_length_exceeded" in codes or bool(_TOO_LONG.search(message)))
    final = reply.status == 402 or any(code in _NO_CREDIT for code in codes)
    again = (reply.status in _TRANSIENT or reply.status >= 500) and not final
    wait = retry_after(reply.headers.get("retry-after"))
    return Refusal(_excerpt(clean(message)) or "no reason given", again, wait, limited, too_long or reply.status == 413, final)


def unwanted_setting(reply: Reply, settings: Mapping[str, str | None]) -> str | None:
    """The setting that the reply refuses, of those in use; None if it refuses none."""
    if reply.status not in (400, 422):
        return None
    facts = _json(reply.body)
    error = facts.get("error") if isinstance(facts, dict) else None
    named = error.get("param") if isinstance(error, dict) else None
    message = _message(facts) if isinstance(facts, dict) else ""
    refuses = "unsupported" in message.lower() or "not support" in message.lower()
    for key, name in settings.items():
        if name == key and (named == key or (refuses and f"'{key}'" in message)):
            return key
    return None


def retry_after(value: str | None, now: float | None = None) -> float | None:
    """Seconds that a Retry-After header asks to wait: a number of seconds, or a date. None where it is missing or unreadable."""
    if value is None:
        return None
    value = value.strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - (time.time() if now is None else now), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _message(facts: Mapping[str, Any]) -> str:
    """The error message of a JSON object; servers put it into various places."""
    error = facts.get("error", facts)
    if isinstance(error, dict):
        error = next((error[name] for name in ("message", "detail", "error") if error.get(name)), error)
    return error if isinstance(error, str) else json.dumps(error, ensure_ascii=False, default=str)


def _spent(facts: Mapping[str, Any], otherwise: Usage) -> Usage:
    """What the reply says that it cost; an estimate where it says nothing."""
    usage = facts.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    numbers = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return Usage(otherwise.requests, _whole(numbers[0], otherwise.tokens_in), _whole(numbers[1], otherwise.tokens_out))


def _text(body: bytes) -> str:
    return body.decode("utf-8", "replace")


def _excerpt(text: str) -> str:
    line = " ".join(_unicode(text).split())
    return line if len(line) <= 200 else f"{line[:197]}..."


def _unicode(text: str) -> str:
    """`text` with a question mark for each half of a surrogate pair, which JSON may hold and UTF-8 may not."""
    return text.encode("utf-8", "replace").decode()


def _whole(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40 else otherwise
