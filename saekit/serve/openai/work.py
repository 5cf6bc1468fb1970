"""What a request to the endpoint comes to: rows for the model worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from saekit.serve.openai.asked import Asked, AskedChat, AskedCompletion
from saekit.serve.openai.models import Model
from saekit.serve.prompts import chat_prompt, text_ids
from saekit.serve.sampling import Row
from saekit.serve.worker import Limits, Work
from saekit.workspace.interventions import described

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

Prepare = Callable[["LanguageModel"], Work]


def completion_work(model: Model, asked: AskedCompletion) -> Prepare:
    """The rows of `POST /v1/completions`: the `n` answers to the first prompt, then those to the second, and so on."""

    def prepare(lm: LanguageModel) -> Work:
        from saekit.serve.rows import score

        intervention = steering(model, asked, lm)
        most = 16 if asked.max_tokens is None else asked.max_tokens
        rows = _rows(asked, [_ids(lm, prompt) for prompt in prompts_of(asked)], most, asked.logprobs, intervention)
        scored = [score(lm, row) for row in rows] if asked.echo and asked.logprobs is not None else []
        return Work(rows, scored)

    return prepare


def chat_work(model: Model, asked: AskedChat, limits: Limits) -> Prepare:
    """The rows of `POST /v1/chat/completions`."""

    def prepare(lm: LanguageModel) -> Work:
        prompt = chat_prompt(lm, [message.plain() for message in asked.messages])
        room = max(1, min(limits.max_tokens, lm.max_context - len(prompt.ids)))
        top = (asked.top_logprobs or 0) if asked.logprobs else None
        most = room if asked.most is None else asked.most
        rows = _rows(asked, [prompt.ids], most, top, steering(model, asked, lm))
        return Work([replace(row, stop=(*row.stop, *prompt.stop)) for row in rows])

    return prepare


def prompts_of(asked: AskedCompletion) -> Sequence[str | list[int]]:
    """The prompts of a request, each a text or token ids."""
    given = asked.prompt
    if isinstance(given, str):
        return [given]
    if all(isinstance(each, int) for each in given):
        return [given]  # type: ignore[list-item]
    return given  # type: ignore[return-value]


def steering(model: Model, asked: Asked, lm: LanguageModel) -> Any:
    """The intervention of the model that a request names, with those of the request, bound; None if there is none."""
    parts = [*model.steerers, *asked.interventions]
    if not parts:
        return None
    return described(model.opened.workspace, parts, asked.positions).bind(lm)


def _ids(lm: LanguageModel, prompt: str | list[int]) -> tuple[int, ...]:
    return text_ids(lm, prompt) if isinstance(prompt, str) else tuple(prompt)


def _rows(asked: Asked, prompts: Sequence[tuple[int, ...]], most: int, top: int | None, intervention: Any) -> list[Row]:
    return [Row(prompt, most, sampling, asked.stops, top, intervention) for prompt in prompts for sampling in asked.samplings()]
