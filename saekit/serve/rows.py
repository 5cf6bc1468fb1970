"""Continuing several prompts in one generation: each row has its own intervention, sampling, length and end.

The rows share the forward passes and nothing else. A row's continuation is that of :func:`saekit.lm.generate.generate.generate`
for its prompt alone, with the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.lm.generate.sampling import GumbelNoise, noise_seed
from saekit.lm.run.edits import At, Edit
from saekit.names.positions import GENERATION
from saekit.serve.sampling import Row
from saekit.serve.stream import End, Event, Likely, Reason, Token

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_CONTEXT = 16
"""Tokens of a prompt that are decoded with a continuation: the first word's leading space depends on what stands before it."""


def continue_rows(
    lm: LanguageModel,
    rows: Sequence[Row],
    emit: Callable[[int, Event], None],
    gone: Callable[[int], bool] = lambda row: False,
) -> dict[int, Exception]:
    """Continue all rows, and emit their tokens as they are chosen. `row` of the events is the number among `rows`.

    Rows whose results would change with pads continue after each other.

    Args:
        lm: the model.
        rows: what to continue.
        emit: called with the number of a row and an event of it; the last one of a row is `End`.
        gone: whether nobody waits for a row any more. Asked at every token.

    Returns:
        The error of each row whose intervention could not be applied to its tokens; these rows have no `End`.

    Raises:
        SaekitError: as `lm.generate` does.
    """
    failed: dict[int, Exception] = {}
    waiting = [number for number, row in enumerate(rows) if row.max_tokens > 0]
    for number in set(range(len(rows))) - set(waiting):
        emit(number, End(number, "length"))
    with lm.lock:
        groups = _groups(lm, rows, waiting)
    for group in groups:
        run = _Run(lm, [rows[number] for number in group], group, emit, gone)
        lm.generate(
            [list(row.prompt) for row in run.rows],
            interventions=[_OfRow(row.intervention, r, run) for r, row in enumerate(run.rows) if row.intervention is not None],
            do_sample=False,
            max_new_tokens=max(row.max_tokens for row in run.rows),
            logits_processor=[run.choose],
            stopping_criteria=[run.observe],
        )
        failed |= {group[r]: error for r, error in run.failed.items()}
    return failed


def _groups(lm: LanguageModel, rows: Sequence[Row], numbers: Sequence[int]) -> list[list[int]]:
    """Numbers of the rows that continue together: those of one length or, where pads make no difference, all."""
    by_length: dict[int, list[int]] = {}
    for number in numbers:
        by_length.setdefault(len(rows[number].prompt), []).append(number)
    if len(by_length) > 1 and lm.exact.padded_cache:
        return [list(numbers)]
    return list(by_length.values())


class _Run:
    """One generation: chooses the tokens of every row, and sends them on."""

    def __init__(
        self,
        lm: LanguageModel,
        rows: Sequence[Row],
        numbers: Sequence[int],
        emit: Callable[[int, Event], None],
        gone: Callable[[int], bool],
    ) -> None:
        self.lm, self.rows = lm, rows
        self._numbers, self._emit, self._gone = numbers, emit, gone
        self._writers = [_Writer(lm, row) for row in rows]
        self._choosers = [_Chooser(row) for row in rows]
        self._done = [False] * len(rows)
        self._logits_BV: Tensor | None = None
        eos = lm.model.generation_config.eos_token_id
        self._ends = set(eos) if isinstance(eos, list | tuple) else {eos}
        self.failed: dict[int, Exception] = {}

    def choose(self, tokens_BT: Tensor, logits_BV: Tensor) -> Tensor:
        """A logits processor after which the largest score of each row is its next token."""
        self._logits_BV = logits_BV
        return torch.stack([chooser(self._writers[r].ids, logits_BV[r]) for r, chooser in enumerate(self._choosers)])

    def observe(self, tokens_BT: Tensor, scores: Any, **_: Any) -> Tensor:
        """A stopping criterion: sends on the tokens that were just chosen; True for the rows that have ended."""
        for r, token in enumerate(tokens_BT[:, -1].tolist()):
            if not self._done[r]:
                number = self._numbers[r]
                self._done[r] = r in self.failed or self._gone(number) or self._took(r, number, token)
        return torch.tensor(self._done, device=tokens_BT.device)

    def _took(self, r: int, number: int, token: int) -> bool:
        """Send on a token, and the end of its row; whether it has ended."""
        row, writer = self.rows[r], self._writers[r]
        reason: Reason | None = "stop"
        if token not in self._ends:
            text, stopped = writer.take(token)
            reason = "stop" if stopped else "length" if len(writer.ids) >= row.max_tokens else None
            chosen, top = (None, ()) if row.top is None else self._likely(r, token, row.top)
            self._emit(number, Token(number, text, token, chosen, top))
        if reason is not None:
            self._emit(number, End(number, reason, writer.rest(), token if token in self._ends else None))
        return reason is not None

    def _likely(self, r: int, token: int, top: int) -> tuple[Likely, tuple[Likely, ...]]:
        assert self._logits_BV is not None, "tokens are chosen before they are observed"
        return likely(self.lm, self._logits_BV[r], token, top)


def likely(lm: LanguageModel, logits_V: Tensor, token: int, top: int) -> tuple[Likely, tuple[Likely, ...]]:
    """A token and the `top` likeliest ones, with log-probabilities from the logits (V,)."""
    logp_V = logits_V.float().log_softmax(-1)
    best = logp_V.topk(min(top, len(logp_V)))
    ids = [token, *best.indices.tolist()]
    found = [Likely(*each) for each in zip(ids, lm.text.token_strings(ids), [float(logp_V[token]), *best.values.tolist()])]
    return found[0], tuple(found[1:])


def score(lm: LanguageModel, row: Row) -> tuple[Token, ...]:
    """The tokens of the prompt of a row with the log-probabilities that the steered model gives them; the first has NaN."""
    ids, top = list(row.prompt), row.top or 0
    edits = [] if row.intervention is None else [row.intervention]
    logits = lm.run([ids], edits=edits, positions=GENERATION, prompt_lengths=[len(ids)], logits="all").logits
    assert logits is not None, "all logits were asked for"
    found = [(Likely(ids[0], lm.text.token_strings(ids[:1])[0], nan), ())]
    found += [likely(lm, logits[0, t], token, top) for t, token in enumerate(ids[1:])]  # type: ignore[misc]
    return tuple(Token(0, chosen.text, chosen.id, chosen, best) for chosen, best in found)


class _Chooser:
    """Scores of the next token of one row, whose largest is the choice."""

    def __init__(self, row: Row) -> None:
        from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        sampling = self._sampling = row.sampling
        self._steps: list[Callable[[Any, Tensor], Tensor]] = []
        if sampling.temperature > 0:
            if sampling.temperature != 1:
                self._steps.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k:
                self._steps.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._steps.append(TopPLogitsWarper(float(sampling.top_p)))
            self._steps.append(GumbelNoise([noise_seed(sampling.seed, row.prompt, sampling.sample)]))

    def __call__(self, ids: Sequence[int], logits_V: Tensor) -> Tensor:
        scores_1V = logits_V[None]
        if ids and (self._sampling.frequency_penalty or self._sampling.presence_penalty):
            count_V = torch.bincount(torch.tensor(ids), minlength=len(logits_V)).to(logits_V)
            paid = count_V * self._sampling.frequency_penalty + (count_V > 0) * self._sampling.presence_penalty
            scores_1V = scores_1V - paid.to(logits_V)
        for step in self._steps:
            scores_1V = step(None, scores_1V)
        return scores_1V[0]


class _Writer:
    """The text of one row's continuation, given out as soon as it cannot change any more."""

    def __init__(self, lm: LanguageModel, row: Row) -> None:
        self._lm, self._stop = lm, row.stop
        self._before = list(row.prompt[-_CONTEXT:])
        self.ids: list[int] = []
        self._text = ""
        self._sent = 0

    def take(self, token: int) -> tuple[str, bool]:
        """Text to give out after another token, and whether a stop sequence is complete."""
        self.ids.append(token)
        self._text = self._lm.text.continuation(self._before, self.ids)
        found = [place for each in self._stop if (place := self._text.find(each)) >= 0]
        if found:
            self._text = self._text[: min(found)]
            return "", True  # rest() gives out what is left
        return self._send(self._settled()), False

    def rest(self) -> str:
        """What is left to give out when the row ends."""
        return self._send(len(self._text))

    def _send(self, until: int) -> str:
        text = self._text[self._sent : until]
        self._sent = max(self._sent, until)
        return text

    def _settled(self) -> int:
        """The length of the text without an incomplete character or what may be the beginning of a stop sequence."""
        whole = len(self._text.rstrip("\ufffd"))
        for each in self._stop:
            for size in range(min(len(each) - 1, whole), 0, -1):
                if self._text[:whole].endswith(each[:size]):
                    whole = min(whole, len(self._text[:whole]) - size)
                    break
        return whole


@dataclass(frozen=True)
class _OfRow:
    """An intervention on one row of a generation: no other row sees its edits."""

    intervention: Any
    row: int
    run: _Run

    def edits(self, lm: LanguageModel) -> list[Edit]:
        """The edits of the intervention, for this row."""
        return [replace(edit, fn=_OneRow(edit, self)) for edit in self.intervention.edits(lm)]


@dataclass(frozen=True)
class _OneRow:
    edit: Edit
    of: _OfRow

    def __call__(self, rows: Tensor, at: At) -> Tensor:
        is_own = at.batch_N == self.of.row
        if not bool(is_own.any()) or self.of.row in self.of.run.failed:
            return rows
        try:
            return self._pattern(rows, at, is_own) if at.position_N.ndim == 2 else self._tokens(rows, at, is_own)
        except Exception as error:  # of this row alone: the others go on, and the worker reports it
            self.of.run.failed[self.of.row] = error
            return rows

    def _tokens(self, rows: Tensor, at: At, is_own: Tensor) -> Tensor:
        own = is_own.nonzero().squeeze(1)
        index = own.to(rows.device)
        return rows.index_copy(0, index, self.edit.fn(rows[index], _alone(at.rows(own))))

    def _pattern(self, rows: Tensor, at: At, is_own: Tensor) -> Tensor:
        """Patterns (B, H, Q, K) are edited whole, because their queries are found by their place in the batch."""
        return torch.where(is_own.to(rows.device)[:, None, None, None], self.edit.fn(rows, _alone(at)), rows)


def _alone(at: At) -> At:
    """The same rows as those of the only prompt of a request."""
    return at._replace(batch_N=torch.zeros_like(at.batch_N))
