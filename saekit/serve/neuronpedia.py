"""Neuronpedia's `/api/feature`, `/api/steer` and `/api/steer-chat`, answered from the workspaces, so that its clients work here.

A dictionary has the names that `saekit export` gives it: `modelId` is the last part of the model's name, and `layer` (the source)
is `{layer}-{set}`, as in `2-resid-post-saekit`.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from saekit.errors import ConfigError, UnknownRef
from saekit.serve.openai.answers import finite, sse
from saekit.serve.openai.asked import MOST_TEXT, Message
from saekit.serve.openai.failures import facts
from saekit.serve.prompts import chat_prompt, text_ids
from saekit.serve.rendering import json_response
from saekit.serve.sampling import Row, Sampling
from saekit.serve.sending import collect, server_sent
from saekit.serve.state import Opened, Served, ServedHere
from saekit.serve.stream import End, Event, Likely, Token
from saekit.serve.worker import Work
from saekit.workspace.interventions import described

if TYPE_CHECKING:
    from feature_db.exchange.names import Names
    from feature_db.records import IndexedSAE
    from saekit.lm import LanguageModel

router = APIRouter(prefix="/api", tags=["Neuronpedia"])
_ARMS = ("DEFAULT", "STEERED")


class SteerFeature(BaseModel):
    """A feature and the strength that is added to it."""

    modelId: str = Field(max_length=200)
    layer: str = Field(max_length=200, description="The source: `2-resid-post-saekit`.")
    index: int = Field(ge=0)
    strength: float


class AskedSteering(BaseModel):
    """What both kinds of steering take."""

    modelId: str = Field(max_length=200)
    features: list[SteerFeature] = Field(min_length=1, max_length=32)
    temperature: float = Field(0.5, ge=0, le=2)
    n_tokens: int = Field(32, ge=1)
    freq_penalty: float = Field(0.0, ge=-2, le=2)
    seed: int = 16
    strength_multiplier: float = 1.0
    steer_method: Literal["SIMPLE_ADDITIVE"] = Field(
        "SIMPLE_ADDITIVE", description="strength * strength_multiplier times the decoder direction is added at every token."
    )
    n_logprobs: int = Field(5, ge=0, le=20)
    stream: bool = False


class AskedSteer(AskedSteering):
    """The body of `POST /api/steer`."""

    prompt: str = Field(max_length=MOST_TEXT)


class AskedSteerChat(AskedSteering):
    """The body of `POST /api/steer-chat`."""

    defaultChatMessages: list[Message] = Field(min_length=1, max_length=1000)
    steeredChatMessages: list[Message] = Field(min_length=1, max_length=1000)


@router.get("/feature/{model}/{source}/{index}")
def feature(served: ServedHere, model: str, source: str, index: int) -> Response:
    """One feature: statistics, logits, activations and explanations."""
    opened, sae, names = _find(served, model, source)
    from feature_db.exchange import neuronpedia

    return json_response(neuronpedia.feature(opened.database, sae, names, index))


@router.post("/steer")
async def steer(request: Request, asked: AskedSteer, served: ServedHere) -> Response:
    """Continue a prompt with and without features turned on."""
    return await _answered(request, served, asked, Texts(asked))


@router.post("/steer-chat")
async def steer_chat(request: Request, asked: AskedSteerChat, served: ServedHere) -> Response:
    """Answer a chat with and without features turned on."""
    return await _answered(request, served, asked, Chats(asked))


class Texts:
    """The two continuations as they come: `_ARMS[row]` is what the events of a row are of."""

    def __init__(self, asked: AskedSteering) -> None:
        self.asked = asked
        self.said = ["", ""]
        self.scored: list[list[dict[str, Any]]] = [[], []]
        self.id = "c" + secrets.token_hex(12)

    def rows(self, lm: LanguageModel, intervention: Any) -> Iterator[Row]:
        """The unsteered and the steered row, with the same noise."""
        asked = self.asked
        sampling = Sampling(asked.temperature, frequency_penalty=asked.freq_penalty, seed=asked.seed)
        for number, arm in enumerate((None, intervention)):
            ids, stop = self.prompt(lm, number)
            yield Row(ids, asked.n_tokens, sampling, stop, asked.n_logprobs, arm)

    def prompt(self, lm: LanguageModel, row: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The prompt of a row, and where it stops."""
        assert isinstance(self.asked, AskedSteer)
        return text_ids(lm, self.asked.prompt), ()

    def take(self, event: Event) -> None:
        """Note an event."""
        if isinstance(event, Token | End):
            self.said[event.row] += event.text
        if isinstance(event, Token) and event.chosen is not None:
            top = [_likely(each) for each in event.top]
            self.scored[event.row].append({**_likely(event.chosen), "topLogprobs": top})

    def arm(self, row: int) -> Any:
        """What a row has said, in Neuronpedia's format."""
        assert isinstance(self.asked, AskedSteer)
        return self.asked.prompt + self.said[row]

    def whole(self) -> dict[str, Any]:
        """The answer, of what has been said so far."""
        default, steered = self.scored
        return {
            **{arm: self.arm(row) for row, arm in enumerate(_ARMS)},
            "defaultLogProbs": default,
            "steeredLogProbs": steered,
            "id": self.id,
            "shareUrl": None,
            "limit": None,
        }


class Chats(Texts):
    """Answers to chats."""

    def _messages(self, row: int) -> list[Message]:
        assert isinstance(self.asked, AskedSteerChat)
        return [self.asked.defaultChatMessages, self.asked.steeredChatMessages][row]

    def prompt(self, lm: LanguageModel, row: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The chat, up to where the assistant answers."""
        made = chat_prompt(lm, [message.plain() for message in self._messages(row)])
        return made.ids, made.stop

    def arm(self, row: int) -> Any:
        """The chat with the answer."""
        chat = [*(message.plain() for message in self._messages(row)), {"role": "assistant", "content": self.said[row]}]
        return {"raw": "\n".join(f"{each['role']}: {each['content']}" for each in chat), "chatTemplate": chat}


async def _answered(request: Request, served: Served, asked: AskedSteering, answer: Texts) -> Response:
    places = {_find(served, each.modelId, each.layer)[0].name for each in asked.features}
    if len(places) > 1:
        raise ConfigError("The features are of several workspaces.", "Steer with features of one model.")
    opened = served.find(places.pop())

    def prepare(lm: LanguageModel) -> Work:
        specs = [
            {
                "target": f"{_find(served, each.modelId, each.layer)[1].dictionary}/{each.index}",
                "op": "add",
                "strength": f"{each.strength * asked.strength_multiplier}raw",
            }
            for each in asked.features
        ]
        return Work(list(answer.rows(lm, described(opened.workspace, specs, "all").bind(lm))))

    stream = served.worker.generate(opened.name, opened.workspace, prepare)
    if not asked.stream:
        await collect(request, stream, answer.take)
        return JSONResponse(answer.whole())

    def chunks(event: Event) -> Iterable[str]:
        answer.take(event)
        yield sse(answer.whole())

    async def end(error: Exception | None) -> AsyncIterator[str]:
        if error is not None:
            yield sse(facts(error))

    return await server_sent(request, stream, chunks, end)


def _find(served: Served, model: str, source: str) -> tuple[Opened, IndexedSAE, Names]:
    """The indexed dictionary that Neuronpedia would call so; its address in the workspace is understood too.

    Raises:
        UnknownRef: there is none; the message lists those that there are.
    """
    from feature_db.exchange.names import Names

    known = []
    for opened in served.workspaces.values():
        if not opened.workspace.database_path.exists():
            continue
        for sae in opened.database.saes():
            names = Names.of(sae)
            if model in (names.model, opened.name) and source in (names.source, sae.dictionary):
                return opened, sae, names
            known.append(f"{names.model}/{names.source}")
    raise UnknownRef(f"There is no dictionary {model!r:.80}/{source!r:.80}.", f"Served here: {', '.join(known[:12]) or 'none'}.")


def _likely(each: Likely) -> dict[str, Any]:
    return {"token": each.text, "logprob": finite(each.logprob)}
