"""What endpoints reply, read with care: an endpoint may send anything."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from feature_db.chat.model import Answer, Messages, NoAnswer, estimated_tokens, without_thoughts

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


def answer_of(reply: Reply, messages: Messages) -> Answer:
    """The answer in a reply with status 200.

    Raises:
        NoAnswer: it holds none.
    """
    facts = _json(reply.body)
    if not isinstance(facts, dict):
        raise NoAnswer(f"the reply is no JSON object: {_excerpt(reply.body.decode('utf-8', 'replace'))}", again=True)
    try:
        choice = facts["choices"][0]
        message = choice["message"]
        content = message["content"] if message.get("content") is not None else ""
    except (KeyError, IndexError, TypeError, AttributeError):
        message = _message(facts)
        raise NoAnswer(f"the reply has no choices with a message: {_excerpt(message)}", again=True) from None
    if isinstance(message.get("refusal"), str) and message["refusal"]:
        raise NoAnswer(f"the model refuses: {_excerpt(message['refusal'])}", again=True)
    if isinstance(content, list):  # parts, as some servers have it
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise NoAnswer("the content of the reply is no text", again=True)
    text = without_thoughts(_unicode(content))
    if not text:
        finish = choice.get("finish_reason")
        why = ": all tokens that it may use went into thoughts (--max-tokens)" if finish == "length" else ""
        raise NoAnswer(f"the answer is empty{why}", again=True)
    usage = facts.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    spent = estimated_tokens([{"content": content}])
    return Answer(
        text, _whole(usage.get("prompt_tokens"), estimated_tokens(messages)), _whole(usage.get("completion_tokens"), spent)
    )


def refusal_of(reply: Reply) -> Refusal:
    """What a reply with another status than 200 says."""
    facts = _json(reply.body)
    message = _message(facts) if isinstance(facts, dict) else reply.body.decode("utf-8", "replace")
    error = facts.get("error") if isinstance(facts, dict) else None
    codes = [str(error.get(name)) for name in ("code", "type")] if isinstance(error, dict) else []
    limited = reply.status == 429 or (reply.status == 503 and "retry-after" in reply.headers)
    too_long = reply.status in (400, 413, 422) and ("context_length_exceeded" in codes or bool(_TOO_LONG.search(message)))
    final = reply.status == 402 or any(code in _NO_CREDIT for code in codes)
    again = (reply.status in _TRANSIENT or reply.status >= 500) and not final
    wait = retry_after(reply.headers.get("retry-after"))
    return Refusal(_excerpt(message) or "no reason given", again, wait, limited, too_long or reply.status == 413, final)


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


def _excerpt(text: str) -> str:
    line = " ".join(_unicode(text).split())
    return line if len(line) <= 200 else f"{line[:197]}..."


def _unicode(text: str) -> str:
    """`text` with a question mark for each half of a surrogate pair, which JSON may hold and UTF-8 may not."""
    return text.encode("utf-8", "replace").decode()


def _whole(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40 else otherwise
