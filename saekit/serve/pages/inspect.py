"""The inspector: a text or a chat, token by token."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from saekit.serve.prompts import chat_prompt, text_ids
from saekit.serve.rendering import json_response, page
from saekit.serve.state import OpenedHere, ServedHere
from saekit.views.inspector import dictionaries, inspector_view, lenses, patterns_view

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

router = APIRouter(prefix="/w/{ws}")
_MOST = 20_000


class Turn(BaseModel):
    """What somebody says in a chat."""

    role: Literal["user", "assistant"]
    content: str = Field(max_length=_MOST)


class Inspected(BaseModel):
    """The text or chat that is read, and with what."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field("", max_length=_MOST)
    messages: list[Turn] = Field(default_factory=list, max_length=100, description="A chat, in place of the text.")
    dictionary: str = Field("", max_length=200)
    lens: str = Field("logit", max_length=40)
    layer: int = Field(0, ge=0, le=10_000, description="Of the attention patterns.")

    def ids(self, lm: LanguageModel) -> list[int]:
        """The tokens."""
        if self.messages:
            return list(chat_prompt(lm, [{"role": each.role, "content": each.content} for each in self.messages]).ids)
        return list(text_ids(lm, self.text))


@page(router, "/inspect", "inspect.html")
def inspect(opened: OpenedHere, text: Annotated[str, Query(max_length=2000)] = "") -> dict[str, Any]:
    """Read a text or a chat token by token."""
    ws = opened.workspace
    return {"text": text, "dictionaries": dictionaries(ws), "lenses": lenses(ws)}


@router.post("/inspect/read", tags=["inspector", "compute"])
async def read(opened: OpenedHere, served: ServedHere, asked: Inspected) -> Response:
    """The strongest features, the error share and the lens at each token."""
    ws = opened.workspace

    def view(lm: LanguageModel) -> dict[str, Any]:
        return inspector_view(ws, lm, asked.ids(lm), asked.dictionary, lens=asked.lens)

    return json_response(await asyncio.wrap_future(served.worker.call(opened.name, ws, view)))


@router.post("/inspect/patterns", tags=["inspector", "compute"])
async def patterns(opened: OpenedHere, served: ServedHere, asked: Inspected) -> Response:
    """The attention patterns of a layer."""
    call = served.worker.call(opened.name, opened.workspace, lambda lm: patterns_view(lm, asked.ids(lm), asked.layer))
    return json_response(await asyncio.wrap_future(call))
