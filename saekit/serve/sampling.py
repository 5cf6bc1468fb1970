"""What one row of a generation is asked for. Nothing here loads torch, so that the routers do not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: sample among the likeliest tokens whose probabilities add up to this.
        top_k: sample among this many of the likeliest tokens; 0: among all.
        frequency_penalty: subtracted from the logit of a token for each time that it was generated.
        presence_penalty: subtracted from the logit of a token that was generated.
        seed: of the noise.
        sample: number of the continuation among those of the same prompt and seed.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0
    sample: int = 0


@dataclass(frozen=True)
class Row:
    """One prompt to continue.

    Attributes:
        prompt: token ids, BOS included.
        max_tokens: most tokens of the continuation.
        sampling: how tokens are chosen.
        stop: texts that end the continuation; they are not part of it.
        top: number of likely tokens to report at each token, besides the log-probability of the chosen one; None: neither.
        intervention: anything with `.edits(lm)`, or None.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    top: int | None = None
    intervention: Any = None
