"""The steering bench: baseline, steered and random control side by side, measured, swept, kept and shared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Body, Query, Request, Response

from saekit.errors import ConfigError
from saekit.serve.failures import facts_of
from saekit.serve.openai.answers import sse
from saekit.serve.prompts import chat_prompt, text_ids
from saekit.serve.rendering import json_response, page
from saekit.serve.sampling import Row, Sampling
from saekit.serve.sending import server_sent
from saekit.serve.state import WRITES, Opened, OpenedHere, Served, ServedHere
from saekit.serve.stream import Begun, End, Event, Token
from saekit.serve.worker import Work
from saekit.views.bench import ARMS, Setup, bench_view, object_view, read_run, run_file, suggestions
from saekit.views.bench_results import NEUTRAL_TOKENS, measures_view, sweep_view
from saekit.workspace import bench_runs, interventions, steering

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

router = APIRouter(prefix="/w/{ws}")
_Body = Annotated[dict[str, Any], Body()]
_SHORT = 2000


@page(router, "/bench", "bench.html")
def bench(
    opened: OpenedHere,
    f: Annotated[list[str], Query(max_length=32)] = [],  # noqa: B006
    op: Annotated[str, Query(max_length=40)] = "",
    strength: Annotated[str, Query(max_length=40)] = "",
    prompt: Annotated[str, Query(max_length=_SHORT)] = "Once upon a time",
    mode: Annotated[Literal["text", "chat"], Query()] = "text",
    run: Annotated[str, Query(max_length=200)] = "",
) -> dict[str, Any]:
    """Steer by features, vectors, neurons and heads. `f` names an object to begin with, `run` a kept run."""
    chips = [{"target": each, "op": op, "strength": strength} for each in f]
    setup = Setup.from_dict({"chips": chips, "prompt": prompt, "mode": mode})
    return bench_view(opened.workspace, setup, run)


@router.get("/bench/find.json", tags=["bench"])
def find(opened: OpenedHere, q: Annotated[str, Query(max_length=400)] = "") -> Response:
    """What a text may mean: an object by its name, vectors, features found by a search."""
    return json_response({"found": suggestions(opened.workspace, q)})


@router.get("/bench/object.json", tags=["bench"])
def one_object(opened: OpenedHere, target: Annotated[str, Query(max_length=400)]) -> Response:
    """What is known of something to steer with."""
    return json_response(object_view(opened.workspace, target))


@router.get("/bench/model.json", tags=["bench"])
def model_state(opened: OpenedHere, served: ServedHere) -> Response:
    """Whether the model is loaded, and how many requests wait for it."""
    return json_response({"state": served.worker.state(opened.name), "waiting": served.worker.waiting})


@router.get("/bench/runs/{name}.json", tags=["bench"])
def kept_run(opened: OpenedHere, name: str) -> Response:
    """A kept run as a file to share."""
    setup, result = read_run(bench_runs.read(opened.workspace, name))
    return json_response(run_file(setup, result))


@router.post("/bench/runs/{name}", tags=["bench"], dependencies=[WRITES])
def keep_run(opened: OpenedHere, name: str, body: _Body) -> Response:
    """Keep a run in the workspace. The body is a run as a file has it."""
    setup, result = read_run(body)
    with opened.workspace.writing():
        bench_runs.keep(opened.workspace, name, run_file(setup, result))
    return json_response({"run": name, "runs": bench_runs.names(opened.workspace)})


@router.post("/bench/open", tags=["bench", "compute"])
def open_run(opened: OpenedHere, body: _Body) -> Response:
    """Check a file that somebody shared, and give it back with what is known of its objects."""
    setup, result = read_run(body)
    found = run_file(setup, result)
    return json_response({**found, "objects": [object_view(opened.workspace, chip.target) for chip in setup.chips]})


@router.post("/bench/models/{name}", tags=["bench"], dependencies=[WRITES])
async def keep_model(opened: OpenedHere, served: ServedHere, name: str, body: _Body) -> Response:
    """Keep what is steered with as an intervention, which `/v1/models` then lists as `base+NAME`."""
    setup = _with_chips(body)

    def keep(lm: LanguageModel) -> None:
        made = interventions.described(opened.workspace, setup.described())
        with opened.workspace.writing():
            interventions.keep(opened.workspace, name, made)

    await asyncio.wrap_future(served.worker.call(opened.name, opened.workspace, keep))
    return json_response({"model": f"base+{name}", "steerers": interventions.steerers(opened.workspace)})


@router.post("/bench/sweep", tags=["bench", "compute"])
async def sweep(opened: OpenedHere, served: ServedHere, body: _Body) -> Response:
    """The target and the cost at multiples of the strengths. `words` of the setup are the target."""
    setup = _with_chips(body)
    ws = opened.workspace

    def measure(lm: LanguageModel) -> dict[str, Any]:
        made = interventions.described(ws, setup.described())
        prompts = [setup.prompt if setup.mode == "text" else _shown(lm, _ids(lm, setup, "baseline")[0])]
        neutral = steering.ordinary_rows(ws, NEUTRAL_TOKENS)
        words = setup.words.split(",")
        return sweep_view(lm, made, prompts, words, neutral, max_tokens=min(setup.max_tokens, 64), seed=setup.seed)

    return json_response(await asyncio.wrap_future(served.worker.call(opened.name, ws, measure)))


@router.post("/bench/run", tags=["bench", "compute"])
async def run(request: Request, opened: OpenedHere, served: ServedHere, body: _Body) -> Response:
    """Generate the three arms on one seed, as events: `text` and `end` of each arm, then `result` with its measures."""
    made = Running(opened, served, _with_chips(body))
    stream = served.worker.generate(opened.name, opened.workspace, made.prepare)
    return await server_sent(request, stream, made.chunks, made.end)


def _with_chips(body: Mapping[str, Any]) -> Setup:
    setup = Setup.from_dict(body)
    if not setup.chips:
        raise ConfigError("There is nothing to steer with.", "Add a feature, a vector, a neuron or a head.")
    return setup


class Running:
    """One run: its rows, and what they say."""

    def __init__(self, opened: Opened, served: Served, setup: Setup) -> None:
        self.opened, self.served, self.setup = opened, served, setup
        self.arms: dict[str, Any] = {}
        self.prompts: tuple[tuple[int, ...], ...] = ()
        self.texts = dict.fromkeys(ARMS, "")
        self.reasons = dict.fromkeys(ARMS, "")
        self.tokens: dict[str, list[int]] = {arm: [] for arm in ARMS}

    def prepare(self, lm: LanguageModel) -> Work:
        """The three rows: the same noise, and a random push as long as the steering."""
        from saekit.steer import RandomControl

        setup = self.setup
        bound = interventions.described(self.opened.workspace, setup.described()).bind(lm)
        self.arms = {"baseline": None, "steered": bound, "random": RandomControl(bound, setup.seed)}
        sampling = Sampling(setup.temperature, setup.top_p, seed=setup.seed)
        rows = []
        for arm, intervention in self.arms.items():
            ids, stop = _ids(lm, setup, arm)
            rows.append(Row(ids, setup.max_tokens, sampling, stop, None, intervention))
        return Work(rows)

    def chunks(self, event: Event) -> Iterable[str]:
        """What an event of the model makes the page show."""
        if isinstance(event, Begun):
            self.prompts = event.prompts
            yield sse({"event": "begun"})
            return
        arm = ARMS[event.row]
        self.texts[arm] += event.text
        if event.text:
            yield sse({"event": "text", "arm": arm, "text": event.text})
        if isinstance(event, Token):
            self.tokens[arm].append(event.id)
        elif isinstance(event, End):
            self.tokens[arm] += [] if event.id is None else [event.id]
            self.reasons[arm] = event.reason
            yield sse({"event": "end", "arm": arm, "reason": event.reason})

    async def end(self, error: Exception | None) -> AsyncIterator[str]:
        """The measures, or what went wrong."""
        if error is None:
            try:
                measured = self.served.worker.call(self.opened.name, self.opened.workspace, self._result)
                yield sse({"event": "result", "result": await asyncio.wrap_future(measured)})
                return
            except Exception as raised:
                error = raised
        yield sse({"event": "error", **facts_of(error)})

    def _result(self, lm: LanguageModel) -> dict[str, Any]:
        from saekit.lm import Generation

        made = {
            arm: Generation([""], [self.texts[arm]], [self.tokens[arm]], [list(self.prompts[row])])
            for row, arm in enumerate(ARMS)
        }
        found = measures_view(lm, made, self.arms)
        for arm, one in found["arms"].items():
            one |= {"text": self.texts[arm], "reason": self.reasons[arm]}
        setup, ws = self.setup, self.opened.workspace
        prompt = setup.prompt if setup.mode == "text" else _shown(lm, self.prompts[0])
        code = {"command": setup.command(ws, prompt), "snippet": setup.snippet(ws, prompt)}
        return {**found, **code, "prompt": prompt, "date": datetime.now(UTC).isoformat(timespec="seconds")}


def _ids(lm: LanguageModel, setup: Setup, arm: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The prompt of an arm, and where its answer stops."""
    if setup.mode == "text":
        return text_ids(lm, setup.prompt), ()
    messages = setup.chats.get(arm, ())
    if not messages or messages[-1].role != "user":
        raise ConfigError("A chat ends with a message of the user.", "Write a message.")
    made = chat_prompt(lm, [{"role": each.role, "content": each.content} for each in messages])
    return made.ids, made.stop


def _shown(lm: LanguageModel, ids: tuple[int, ...]) -> str:
    """The text of a prompt, from which the same ids are made again."""
    return lm.text.decode(ids[1:] if ids[:1] == (lm.text.bos_token_id,) else ids)
