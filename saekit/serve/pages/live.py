"""What needs the model: a feature on a text, and steering by it. Requests wait for the model worker, and hold no thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import APIRouter, Response
from fastapi.concurrency import run_in_threadpool

from saekit.errors import ConfigError
from saekit.serve.forms import Sent
from saekit.serve.rendering import json_response, page
from saekit.serve.state import Opened, OpenedHere, Served, ServedHere
from saekit.views.on_text import Steering, feature_on_text, search_by_text, steered
from saekit.views.search_page import Query

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

router = APIRouter()
T = TypeVar("T")
MOST_CHARACTERS = 20_000
_PATH = "/w/{ws}/feature:{dictionary:path}/{number:int}"


async def with_model(served: Served, opened: Opened, function: Callable[[LanguageModel], T]) -> T:
    """What a function of the model returns, called by the model worker.

    Raises:
        Busy: too many requests wait already.
    """
    return await asyncio.wrap_future(served.worker.call(opened.name, opened.workspace, function))


@router.get("/w/{ws}/model.json", tags=["pages"])
def model(opened: OpenedHere, served: ServedHere) -> Response:
    """Whether the model is loaded, and how many requests wait for it."""
    worker = served.worker
    return json_response({"state": worker.state(opened.name), "waiting": worker.waiting, "running": worker.running})


@page(router, f"{_PATH}/test", "on_text.html", method="POST", tags=("compute",))
async def test(opened: OpenedHere, served: ServedHere, dictionary: str, number: int, form: Sent) -> dict[str, Any]:
    """The activation of a feature at every token of a text (`text`)."""
    record = await run_in_threadpool(opened.database.feature, (dictionary, number))
    text = _bounded(form.text("text"))
    return await with_model(served, opened, lambda lm: feature_on_text(lm, opened.sae(record.dictionary), record, text))


@page(router, f"{_PATH}/steer", "steered.html", method="POST", tags=("compute",))
async def steer(opened: OpenedHere, served: ServedHere, dictionary: str, number: int, form: Sent) -> dict[str, Any]:
    """A prompt (`prompt`) continued without and with a feature turned on (`strength`, `op`, `tokens`, `seed`)."""
    record = await run_in_threadpool(opened.database.feature, (dictionary, number))
    given: dict[str, Any] = {name: value for name in Steering._fields if (value := form.text(name))}
    for name in ("tokens", "seed"):
        if name in given:
            given[name] = _whole(name, given[name])
    asked = Steering(**{"prompt": "", **given})
    _bounded(asked.prompt)
    return await with_model(served, opened, lambda _: steered(opened.workspace, record, asked))


async def searched_by_text(served: Served, opened: Opened, query: Query) -> dict[str, Any]:
    """The features that fire on a text; see :func:`saekit.views.on_text.search_by_text`."""
    _bounded(query.q), _bounded(query.contrast)
    return await with_model(served, opened, lambda lm: search_by_text(lm, opened.sae(query.dictionary), opened.database, query))


def _bounded(text: str) -> str:
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"The text has {len(text):,} characters; {MOST_CHARACTERS:,} are allowed.", "Give a shorter one.")
    return text


def _whole(name: str, text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise ConfigError(f"{name} is {text!r:.40}.", "Give a whole number.")
    return int(text)
