"""What a request to the endpoint may say: the fields of OpenAI's API that apply here, and two of saekit's own."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from saekit.serve.sampling import Sampling

Stop = str | Annotated[list[str], Field(max_length=4)] | None
MOST_TEXT = 1 << 20


class StreamOptions(BaseModel):
    """What a stream has besides the text."""

    include_usage: bool = False


class Asked(BaseModel):
    """The fields that both endpoints share. Fields that are not listed are ignored, as chat programs send many."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field("base", max_length=400, description="`base`, or `base+NAME` for a steered model; see `/v1/models`.")
    temperature: float = Field(1.0, ge=0, le=2, description="0 takes the likeliest token.")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="Not in OpenAI's API: sample among this many tokens; 0 is all.")
    n: int = Field(1, ge=1, le=16, description="Answers to each prompt.")
    seed: int | None = Field(None, description="The same request with the same seed has the same answer.")
    stop: Stop = None
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    stream: bool = False
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, float] | None = Field(None, description="Not supported.")
    interventions: list[str | dict[str, Any]] = Field(
        default_factory=list,
        max_length=64,
        description='Not in OpenAI\'s API: what to steer with, besides the model\'s own. `"1042:0.5norm"`, `"french:0.8norm"`, '
        '`{"target": "neuron:2/17", "op": "clamp", "strength": "1max", "positions": "generated"}`, or JSON of an intervention.',
    )
    positions: str | list[int] | None = Field(
        None,
        description="Not in OpenAI's API: tokens to steer at, where an intervention names none. The default is last+generated.",
    )

    @field_validator("logit_bias")
    @classmethod
    def _no_bias(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value:
            raise ValueError("logit_bias is not supported; steer with `interventions`")
        return value

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: Stop) -> Stop:
        if isinstance(value, list) and not all(value):
            raise ValueError("a stop sequence is empty")
        return value or None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop sequences."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def samplings(self) -> list[Sampling]:
        """How each of the `n` answers is sampled. Without a seed, one is drawn."""
        seed = secrets.randbelow(2**31) if self.seed is None else self.seed
        return [
            Sampling(self.temperature, self.top_p, self.top_k, self.frequency_penalty, self.presence_penalty, seed, number)
            for number in range(self.n)
        ]


class AskedCompletion(Asked):
    """The body of `POST /v1/completions`."""

    prompt: (
        Annotated[str, Field(max_length=MOST_TEXT)]
        | Annotated[list[Annotated[str, Field(max_length=MOST_TEXT)]], Field(min_length=1, max_length=16)]
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[list[Annotated[list[int], Field(min_length=1)]], Field(min_length=1, max_length=16)]
    ) = Field(description="A text, token ids, or several of these. BOS is put before a text, and not before ids.")
    max_tokens: int | None = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=20, description="Log-probabilities of the tokens and of this many likely ones.")
    echo: bool = Field(False, description="Give the prompt back before the answer; with `logprobs`, the prompt's too.")
    best_of: int | None = Field(None, description="Not supported, unless it equals `n`.")
    suffix: str | None = Field(None, description="Not supported.")

    @field_validator("suffix")
    @classmethod
    def _no_suffix(cls, value: str | None) -> str | None:
        if value:
            raise ValueError("suffix is not supported")
        return value

    @field_validator("best_of")
    @classmethod
    def _no_best(cls, value: int | None, info: Any) -> int | None:
        if value not in (None, info.data.get("n", 1)):
            raise ValueError("best_of is not supported; ask for n answers")
        return value


class Part(BaseModel):
    """A part of what a message says."""

    type: Literal["text"]
    text: str = Field(max_length=MOST_TEXT)


class Message(BaseModel):
    """One message of a chat. `developer` means `system`."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=MOST_TEXT)] | list[Part]

    @property
    def text(self) -> str:
        """What the message says."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.text}


class ResponseFormat(BaseModel):
    """Only text is supported."""

    type: Literal["text"] = "text"


class AskedChat(Asked):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(None, ge=1, description="Older name of `max_completion_tokens`.")
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = Field(None, max_length=0, description="Not supported.")

    @property
    def most(self) -> int | None:
        """Most tokens of an answer; None: as many as the context has room for."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
