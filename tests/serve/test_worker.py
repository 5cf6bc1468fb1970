"""The model worker: its queue, its bounds, and what happens when models, jobs and clients fail."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from saekit.errors import ContextTooLong, ModelNotFound
from saekit.lm import Edit
from saekit.names.site import Site
from saekit.serve.sampling import Row, Sampling
from saekit.serve.stream import Begun, End, Stream, Token
from saekit.serve.worker import Busy, Limits, Stopped, TooLong, Work, Worker
from tests.kit.tiny import make_lm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from saekit.lm import LanguageModel

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def host() -> Any:
    return SimpleNamespace(lm=make_lm())


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(Limits(waiting=4, prompt_tokens=10, max_tokens=20, rows=4))
    yield made
    made.close()


def prompt(text: str = "w1 w2 w3", max_tokens: int = 6, **settings: Any) -> Callable[[LanguageModel], Work]:
    return lambda lm: Work([Row(tuple(lm.text.ids([text])[0]), max_tokens, GREEDY, **settings)])


def tokens(stream: Stream) -> list[int]:
    return [event.id for event in stream if isinstance(event, Token)]


class Held:
    """Keeps a worker busy until it is let go."""

    def __init__(self, worker: Worker, host: Any) -> None:
        self.begun, self._go = threading.Event(), threading.Event()
        self.done = worker.call("ws", host, self._wait)
        assert self.begun.wait(120)

    def _wait(self, lm: LanguageModel) -> str:
        self.begun.set()
        assert self._go.wait(120)
        return lm.name

    def end(self) -> None:
        self._go.set()


def test_the_model_is_loaded_on_first_need_and_shown_as_loading(worker: Worker) -> None:
    lm, reached, go = make_lm(), threading.Event(), threading.Event()

    class Slow:
        @property
        def lm(self) -> LanguageModel:
            reached.set()
            assert go.wait(120)
            return lm

    assert worker.state("ws") == "not loaded"
    stream = worker.generate("ws", Slow(), prompt())
    assert reached.wait(120)
    assert worker.state("ws") == "loading"
    go.set()
    begun, *events = list(stream)
    assert isinstance(begun, Begun)
    assert begun.texts == ("<s> w1 w2 w3",)
    assert isinstance(events[-1], End)
    assert worker.state("ws") == "ready"


def test_a_model_that_cannot_be_loaded_fails_its_jobs_and_is_tried_again(worker: Worker, host: Any) -> None:
    tries: list[int] = []

    class Missing:
        @property
        def lm(self) -> LanguageModel:
            tries.append(1)
            if len(tries) == 1:
                raise ModelNotFound("There is no model nowhere.")
            found: LanguageModel = host.lm
            return found

    missing = Missing()
    with pytest.raises(ModelNotFound, match="nowhere"):
        list(worker.generate("ws", missing, prompt()))
    assert worker.state("ws") == "There is no model nowhere."
    assert tokens(worker.generate("ws", missing, prompt()))
    assert worker.state("ws") == "ready"


def test_jobs_that_wait_together_are_continued_in_one_generation(
    worker: Worker, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = [tokens(worker.generate("ws", host, prompt(text))) for text in ("w1", "w2 w3", "w4")]
    generations: list[int] = []
    generate = host.lm.generate

    def counted(prompts: Any, **settings: Any) -> Any:
        generations.append(len(prompts))
        return generate(prompts, **settings)

    monkeypatch.setattr(host.lm, "generate", counted)
    held = Held(worker, host)
    streams = [worker.generate("ws", host, prompt(text)) for text in ("w1", "w2 w3", "w4")]
    assert worker.waiting == 3
    held.end()
    assert [tokens(stream) for stream in streams] == single
    assert generations == [3]


def test_a_full_queue_refuses_and_a_client_that_left_makes_room(worker: Worker, host: Any) -> None:
    held = Held(worker, host)
    streams = [worker.generate("ws", host, prompt()) for _ in range(4)]
    with pytest.raises(Busy, match="4 requests are waiting"):
        worker.generate("ws", host, prompt())
    streams[1].close()
    last = worker.call("ws", host, lambda lm: lm.n_layers)
    held.end()
    assert last.result(120) == 2
    assert [bool(tokens(stream)) for stream in streams] == [True, False, True, True]


def test_a_client_that_goes_away_stops_its_generation(worker: Worker, host: Any) -> None:
    """The events that were made by then are few, although the row could have many tokens."""
    made: list[int] = []
    stream: Stream

    class Watch:
        def edits(self, lm: LanguageModel) -> list[Any]:
            def fn(rows: Tensor, at: Any) -> Tensor:
                made.append(1)
                if len(made) == 3:
                    stream.close()
                return rows

            return [Edit(Site.parse("resid_post.0"), fn)]

    stream = worker.generate("ws", host, prompt(max_tokens=20, intervention=Watch()))
    assert worker.call("ws", host, lambda lm: 1).result(120) == 1
    assert 3 <= len(made) <= 4


@pytest.mark.parametrize(
    ("work", "error", "said"),
    [
        (prompt(" ".join(["w1"] * 10)), TooLong, "11 tokens; this server allows 10"),
        (prompt(max_tokens=21), TooLong, "21 tokens; this server allows 20"),
        (lambda lm: Work([Row((0, 4), 2)] * 5), TooLong, "5 continuations; this server allows 4"),
        (lambda lm: 1 / 0, ZeroDivisionError, "division"),
    ],
)
def test_what_is_asked_for_is_bounded(worker: Worker, host: Any, work: Any, error: type[Exception], said: str) -> None:
    held = Held(worker, host)
    bad, good = worker.generate("ws", host, work), worker.generate("ws", host, prompt())
    held.end()
    with pytest.raises(error, match=said):
        list(bad)
    assert tokens(good)


def test_the_context_of_the_model_is_respected(host: Any) -> None:
    worker = Worker()
    with pytest.raises(ContextTooLong, match="64"):
        list(worker.generate("ws", host, prompt(max_tokens=61)))
    worker.close()


def test_a_call_that_fails_fails_alone(worker: Worker, host: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        worker.call("ws", host, lambda lm: 1 / 0).result(120)
    assert worker.call("ws", host, lambda lm: lm.name).result(120) == "tiny"


def test_a_call_that_is_cancelled_in_the_queue_is_not_made(worker: Worker, host: Any) -> None:
    held, made = Held(worker, host), []
    call = worker.call("ws", host, lambda lm: made.append(1))
    assert call.cancel()
    held.end()
    assert worker.call("ws", host, lambda lm: 2).result(120) == 2
    assert not made


def test_a_worker_that_ends_fails_what_waits(host: Any) -> None:
    worker = Worker()
    held = Held(worker, host)
    stream = worker.generate("ws", host, prompt())
    threading.Timer(0.1, held.end).start()
    worker.close()
    with pytest.raises(Stopped):
        list(stream)
    with pytest.raises(Stopped):
        worker.generate("ws", host, prompt())


def test_an_event_loop_reads_many_streams(worker: Worker, host: Any) -> None:
    async def read(stream: Stream) -> list[int]:
        return [event.id async for event in stream if isinstance(event, Token)]

    async def main() -> list[list[int]]:
        streams = [worker.generate("ws", host, prompt(text)) for text in ("w1", "w2 w3", "w4")]
        return list(await asyncio.gather(*map(read, streams)))

    single = [tokens(worker.generate("ws", host, prompt(text))) for text in ("w1", "w2 w3", "w4")]
    assert asyncio.run(main()) == single
