"""The model worker: one thread that loads models on first need and does all work with them, from a bounded queue.

Requests for text that wait together are continued in one generation (:mod:`saekit.serve.rows`), so that eight clients cost little
more than one. Other work with a model (`call`) waits in the same queue, in the order in which it came.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from saekit.errors import ConfigError, SaekitError
from saekit.serve.stream import Begun, Event, Stream

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.serve.sampling import Row
    from saekit.serve.stream import Token

T = TypeVar("T")
_ENDING = "The server is ending."


class Busy(SaekitError):
    """The queue of the model worker is full; try again later."""


class TooLong(SaekitError):
    """A request asks for more than one request may have."""


class Stopped(SaekitError):
    """The worker has ended."""


class Host(Protocol):
    """Has a model that is loaded at the first use, as a workspace does."""

    @property
    def lm(self) -> LanguageModel:
        """The model."""


@dataclass(frozen=True)
class Limits:
    """Bounds of what requests may ask for.

    Attributes:
        waiting: jobs in the queue.
        prompt_tokens: tokens of a prompt.
        max_tokens: tokens of a continuation.
        rows: continuations of one job, and of one generation.
    """

    waiting: int = 64
    prompt_tokens: int = 4096
    max_tokens: int = 2048
    rows: int = 16


@dataclass(frozen=True)
class Work:
    """What a job that generates text comes to once the model is there.

    Attributes:
        rows: the prompts, as :mod:`saekit.serve.rows` takes them.
        scored: for each row the tokens of its prompt with their log-probabilities; empty if they were not asked for.
    """

    rows: Sequence[Row]
    scored: Sequence[Sequence[Token]] = ()


@dataclass
class _Job:
    """Text to generate, or (with `done`) a function to call."""

    place: str
    host: Host
    prepare: Callable[[LanguageModel], Any]
    stream: Stream = field(default_factory=Stream)
    done: Future[Any] | None = None

    @property
    def gone(self) -> bool:
        return self.stream.closed if self.done is None else self.done.cancelled()

    def fail(self, error: Exception) -> None:
        if self.done is None:
            self.stream.fail(error)
        elif not self.done.done():
            self.done.set_exception(error)


class Worker:
    """One thread that does all work with models. It starts at the first job; `close` ends it.

    Args:
        limits: bounds of the requests.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._states: dict[str, str] = {}
        self._running = 0

    def state(self, place: str) -> str:
        """Of the model of a workspace: "not loaded", "loading", "ready", or why it could not be loaded."""
        return self._states.get(place, "not loaded")

    @property
    def waiting(self) -> int:
        """Number of jobs in the queue; those that run are not counted."""
        return len(self._jobs)

    @property
    def running(self) -> int:
        """Number of jobs that run."""
        return self._running

    def generate(self, place: str, host: Host, prepare: Callable[[LanguageModel], Work]) -> Stream:
        """Queue a job that generates text.

        Args:
            place: name of the workspace, for :meth:`state`. One name is always of one host.
            host: has the model.
            prepare: called in the worker with the model; what it raises ends the stream.

        Returns:
            `Begun`, then the tokens and ends of all rows; `row` counts the rows of this job. Close it when the client goes away.

        Raises:
            Busy: the queue is full.
            Stopped: the worker has ended.
        """
        return self._put(_Job(place, host, prepare)).stream

    def call(self, place: str, host: Host, function: Callable[[LanguageModel], T]) -> Future[T]:
        """Queue a function that uses a model. A future that is cancelled before its turn is dropped.

        Raises:
            Busy: the queue is full.
            Stopped: the worker has ended.
        """
        done: Future[T] = Future()
        self._put(_Job(place, host, function, done=done))
        return done

    def close(self) -> None:
        """End the worker: the job that runs stops at its next token, those that wait fail with `Stopped`."""
        with self._changed:
            self._closed = True
            waiting, thread = list(self._jobs), self._thread
            self._jobs.clear()
            self._changed.notify_all()
        for job in waiting:
            job.fail(Stopped(_ENDING))
        if thread is not None:
            thread.join()

    def _put(self, job: _Job) -> _Job:
        with self._changed:
            if self._closed:
                raise Stopped(_ENDING)
            self._jobs = deque(each for each in self._jobs if not each.gone)
            if len(self._jobs) >= self.limits.waiting:
                raise Busy(f"{len(self._jobs)} requests are waiting for the model already.", "Try again in a few seconds.")
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="saekit-model", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return job

    # In the thread

    def _work(self) -> None:
        while True:
            with self._changed:
                self._running = 0
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                jobs = self._take()
                self._running = len(jobs)
            try:
                self._do(jobs)
            except BaseException as error:  # of a whole generation, such as a full memory: the thread goes on
                for job in jobs:
                    job.fail(error if isinstance(error, Exception) else RuntimeError(repr(error)))

    def _take(self) -> list[_Job]:
        """The next job, with those that follow it and can be generated together with it. The caller holds the condition."""
        first = self._jobs.popleft()
        jobs = [first]
        while first.done is None and self._jobs and len(jobs) < self.limits.rows:
            other = self._jobs[0]
            if other.done is not None or other.place != first.place:
                break
            jobs.append(self._jobs.popleft())
        return jobs

    def _do(self, jobs: list[_Job]) -> None:
        jobs = [job for job in jobs if not job.gone]
        if not jobs:
            return
        lm = self._model(jobs)
        if lm is None:
            return
        (first, *_) = jobs
        if first.done is None:
            self._generate(lm, jobs)
        elif first.done.set_running_or_notify_cancel():
            try:
                first.done.set_result(first.prepare(lm))
            except Exception as error:
                first.done.set_exception(error)

    def _model(self, jobs: list[_Job]) -> LanguageModel | None:
        """The model of jobs of one place; None where it cannot be loaded, which ends them."""
        place = jobs[0].place
        if self.state(place) != "ready":
            self._states[place] = "loading"
        try:
            lm = jobs[0].host.lm
        except Exception as error:
            self._states[place] = str(error)
            for job in jobs:
                job.fail(error)
            return None
        self._states[place] = "ready"
        return lm

    def _generate(self, lm: LanguageModel, jobs: list[_Job]) -> None:
        """Prepare jobs and continue their rows together; as many rows in one generation as the limit says."""
        rows: list[tuple[_Job, int, Row]] = []
        for job in jobs:
            try:
                work = job.prepare(lm)
                if len(work.rows) > self.limits.rows:
                    most = f"this server allows {self.limits.rows}"
                    raise TooLong(f"The request asks for {len(work.rows)} continuations; {most}.", "Ask for less.")
                for row in work.rows:
                    self._check(lm, row)
                texts = tuple(lm.decode(list(row.prompt)) for row in work.rows)
                prompts = tuple(row.prompt for row in work.rows)
                job.stream.put(Begun(prompts, texts, tuple(map(tuple, work.scored))))
            except Exception as error:
                job.fail(error)
                continue
            rows += [(job, number, row) for number, row in enumerate(work.rows)]
            if not work.rows:
                job.stream.finish()
        for start in range(0, len(rows), self.limits.rows):
            self._continue(lm, rows[start : start + self.limits.rows])
        for job in {id(job): job for job, _, _ in rows}.values():
            if self._closed:
                job.fail(Stopped(_ENDING))
            job.stream.finish()

    def _continue(self, lm: LanguageModel, group: list[tuple[_Job, int, Row]]) -> None:
        from saekit.serve.rows import continue_rows

        def emit(number: int, event: Event) -> None:
            job, row, _ = group[number]
            job.stream.put(_of_row(event, row))

        def gone(number: int) -> bool:
            return self._closed or group[number][0].stream.closed

        for number, error in continue_rows(lm, [row for _, _, row in group], emit, gone).items():
            group[number][0].stream.fail(error)

    def _check(self, lm: LanguageModel, row: Row) -> None:
        """Raise what forbids a row: the limits, the model's context, or positions that its intervention cannot have."""
        from saekit.names.positions import check_reached

        given, wanted, known = len(row.prompt), row.max_tokens, int(lm.embedding.num_embeddings)  # type: ignore[arg-type]
        if not given or not all(0 <= token < known for token in row.prompt):
            raise ConfigError(f"A prompt needs at least one token, with an id from 0 to {known - 1}.", "Give a text.")
        for what, size, most in (
            ("The prompt", given, self.limits.prompt_tokens),
            ("The answer", wanted, self.limits.max_tokens),
        ):
            if size > most:
                raise TooLong(f"{what} has up to {size:,} tokens; this server allows {most:,}.", "Ask for less.")
        lm.check_context(given + wanted)
        if row.intervention is not None:
            for edit in row.intervention.edits(lm):
                check_reached(edit.positions, [given], max(1, wanted))


def _of_row(event: Event, row: int) -> Event:
    """The event with the number of its row within its job."""
    return event if isinstance(event, Begun) else replace(event, row=row)
