"""`/v1/models`, `/v1/completions` and `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from saekit.serve.openai import models
from saekit.serve.openai.answers import DONE, Answer, ChatStyle, CompletionStyle, sse
from saekit.serve.openai.asked import Asked, AskedChat, AskedCompletion
from saekit.serve.openai.failures import OpenAIRoute, facts
from saekit.serve.openai.work import Prepare, chat_work, completion_work
from saekit.serve.sending import collect, server_sent
from saekit.serve.state import Served, ServedHere

router = APIRouter(prefix="/v1", route_class=OpenAIRoute, tags=["OpenAI"])


@router.get("/models")
def list_models(served: ServedHere) -> dict[str, Any]:
    """The models: `base`, and `base+NAME` for every vector and intervention that the workspace keeps."""
    return {"object": "list", "data": models.listed(served)}


@router.get("/models/{name:path}")
def one_model(served: ServedHere, name: str) -> dict[str, Any]:
    """One model, or 404."""
    found = models.find(served, name)
    known = {each["id"]: each for each in models.listed(served)}
    return known.get(name) or {**known[name.partition("+")[0]], "id": name, "steered_by": "+".join(found.steerers)}


@router.post("/completions")
async def completions(request: Request, asked: AskedCompletion, served: ServedHere) -> Response:
    """Continue a prompt, steered by the model's name and by `interventions`."""
    model = models.find(served, asked.model)
    answer = Answer(asked.model, CompletionStyle(), _usage(asked), asked.echo)
    return await _answered(request, served, model, completion_work(model, asked), answer, asked.stream)


@router.post("/chat/completions")
async def chat_completions(request: Request, asked: AskedChat, served: ServedHere) -> Response:
    """Answer a chat, steered by the model's name and by `interventions`."""
    model = models.find(served, asked.model)
    answer = Answer(asked.model, ChatStyle(), _usage(asked))
    prepare = chat_work(model, asked, served.worker.limits)
    return await _answered(request, served, model, prepare, answer, asked.stream)


def _usage(asked: Asked) -> bool:
    return asked.stream_options is not None and asked.stream_options.include_usage


async def _answered(
    request: Request, served: Served, model: models.Model, prepare: Prepare, answer: Answer, streams: bool
) -> Response:
    opened = model.opened
    stream = served.worker.generate(opened.name, opened.workspace, prepare)
    if not streams:
        await collect(request, stream, lambda event: list(answer.take(event)))
        return JSONResponse(answer.whole())

    async def end(error: Exception | None) -> AsyncIterator[str]:
        if error is not None:
            yield sse(facts(error))
            return
        for chunk in answer.last():
            yield sse(chunk)
        yield DONE

    return await server_sent(request, stream, lambda event: map(sse, answer.take(event)), end)
