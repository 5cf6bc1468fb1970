"""Chat models: an endpoint with faults, waiting and trying again, a model in this process."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import hypothesis
import pytest
from hypothesis import strategies as st

from feature_db.chat.asking import Nonsense, ask
from feature_db.chat.endpoint import KEY_VARIABLE, Endpoint, key_from
from feature_db.chat.limits import Clock, Patience, Patient, RateLimit
from feature_db.chat.model import Answer, Messages, NoAnswer, Usage
from feature_db.chat.replies import Reply, answer_of, refusal_of, retry_after, unwanted_setting
from feature_db.chat.running import complete, for_each
from saekit.errors import ConfigError, EndpointError
from tests.kit.chat_server import ChatServer, most_in_a_span

QUESTION = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "What is it?"}]
QUICK = Patience(retries=3, first=0.01, longest=0.02)


@pytest.fixture(scope="module")
def running() -> Iterator[ChatServer]:
    with ChatServer(lambda messages: f"said: {messages[-1]['content']}") as server:
        yield server


@pytest.fixture
def server(running: ChatServer) -> ChatServer:
    running.plan()
    running.requests.clear()
    return running


@dataclass
class FakeTime:
    """A clock that sleeping moves."""

    time: float = 100.0
    slept: list[float] = field(default_factory=list)

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.time, self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)


def answers(model: Endpoint | Patient, n: int = 1) -> list[str]:
    """What the model says to n questions at once; reasons of failure begin with "no: "."""
    found = [""] * n

    async def one(i: int) -> None:
        try:
            found[i] = (await model.answer([{"role": "user", "content": str(i)}], 20)).text
        except NoAnswer as error:
            found[i] = f"no: {error.reason}"

    async def run() -> None:
        try:
            await for_each(range(n), one, model.concurrency)
        finally:
            await model.close()

    complete(run())
    return found


def asked(model: Endpoint | Patient, usage: Usage, *, tries: int = 3, max_tokens: int = 5) -> str:
    """What the model says to one question, of which any answer can be read."""

    async def run() -> str:
        try:
            return await ask(model, QUESTION, str, max_tokens=max_tokens, tries=tries, usage=usage)
        finally:
            await model.close()

    return complete(run())


def test_a_request_is_one_of_chat_completions(server: ChatServer) -> None:
    model = Endpoint(server.url, "judge-7b", key="secret")
    answer = complete(model.answer(QUESTION, 20))
    (request,) = server.requests
    assert answer == Answer("said: What is it?", 4, 4)
    assert request.path == "/v1/chat/completions" and request.headers["authorization"] == "Bearer secret"
    assert request.body == {"model": "judge-7b", "messages": QUESTION, "max_tokens": 20, "temperature": 0}
    assert "secret" not in repr(model)


def test_every_answer_goes_to_its_question(server: ChatServer) -> None:
    model = Endpoint(server.url, "judge", concurrency=6)
    assert answers(model, 40) == [f"said: {i}" for i in range(40)]
    assert answers(model, 2) == ["said: 0", "said: 1"]  # in another event loop


@pytest.mark.parametrize(
    "fault",
    ["500", "502", "503", "429", "429:0", "408", "reset", "truncate"],
)
def test_transient_faults_are_tried_again(server: ChatServer, fault: str) -> None:
    model = Patient(Endpoint(server.url, "judge"), patience=QUICK)
    server.plan(fault, fault)
    assert answers(model) == ["said: 0"]
    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", ["503", "reset", "429"])
def test_faults_that_last_are_given_up_with_a_reason(server: ChatServer, fault: str) -> None:
    server.plan(always=fault)
    (reason,) = answers(Patient(Endpoint(server.url, "judge"), patience=QUICK))
    assert reason.startswith("no: ") and len(reason) > 10
    assert len(server.requests) == (1 + 4 * 3 if fault == "429" else 1 + 3)


@pytest.mark.parametrize("fault", ["no json", "wrong shape", "no choices", "a list", "empty", "megabytes", "deep"])
def test_replies_that_hold_no_answer_are_tries_of_the_question(server: ChatServer, fault: str) -> None:
    usage, model = Usage(), Patient(Endpoint(server.url, "judge"), patience=QUICK)
    server.plan(fault, fault)
    assert asked(model, usage).startswith("said")
    assert len(server.requests) == usage.requests == 3
    server.plan(always=fault)
    with pytest.raises(NoAnswer, match="in 3 tries") as caught:
        asked(model, usage)
    assert len(server.requests) == usage.requests == 6 and not caught.value.again


def chat_reply(content: str | None, finish: str = "stop", **message: object) -> bytes:
    choice = {"message": {"content": content, **message}, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 2000, "completion_tokens": 400}}).encode()


@pytest.mark.parametrize(
    ("body", "what"), [(chat_reply("", "length"), "Raise --max-tokens"), (chat_reply(None, refusal="no"), "the model refuses")]
)
def test_what_would_end_alike_is_asked_once_and_counted(server: ChatServer, body: bytes, what: str) -> None:
    server.plan(always=body)
    usage, fake = Usage(), FakeTime()
    limit = RateLimit(tokens=2500, clock=fake.clock)
    model = Patient(Endpoint(server.url, "judge"), limit, QUICK)
    for n in (1, 2):
        with pytest.raises(NoAnswer, match=what):
            asked(model, usage, max_tokens=400)
        assert len(server.requests) == n and usage == Usage(n, 2000 * n, 400 * n)
    assert sum(fake.slept) == pytest.approx(60, abs=0.01)  # 2400 tokens count, and not the 420 of the estimate


def test_a_question_that_becomes_too_long_is_not_asked_from_the_start(server: ChatServer) -> None:
    def never(text: str) -> str:
        raise Nonsense("never")

    long = json.dumps({"error": {"message": "maximum context length", "code": "context_length_exceeded"}}).encode()
    server.plan("ok", b"400" + long)
    with pytest.raises(NoAnswer, match="maximum context") as caught:
        complete(ask(Endpoint(server.url, "judge"), QUESTION, never, max_tokens=5, tries=3, usage=Usage()))
    assert not caught.value.too_long


def test_the_key_is_in_no_reason_and_no_answer(server: ChatServer) -> None:
    """Of a key that is cut, no part stays: it is removed before."""
    key, query = "sk-SECRET/123456789", "query-SECRET"
    echo = f"Authorization: Bearer {key} for /v1?key={query}"
    padded = {n: "x" * n + key for n in range(180, 200)}
    bodies = [echo.encode(), json.dumps({"headers": echo}).encode(), chat_reply(None, refusal=echo), chat_reply(echo)]
    bodies += [b"400" + json.dumps({"error": {"message": text}}).encode() for text in (echo, *padded.values())]
    bodies += [text.encode() for text in padded.values()]
    for body in bodies:
        server.plan(always=body)
        model = Endpoint(f"{server.url}?key={query}", "judge", key=key)
        with contextlib.suppress(NoAnswer):
            answer = asked(model, Usage(), tries=1)
            assert "***" in answer and "SECRET" not in answer
            continue
        (said,) = answers(model)
        assert said.startswith("no: ") and "sk-" not in said and "SECRET" not in said
    assert server.requests[-1].path == f"/v1/chat/completions?key={query}"
    server.plan(always="404")
    with pytest.raises(EndpointError) as caught:
        answers(model)
    assert "SECRET" not in f"{caught.value} {model!r}" and "/v1/chat/completions" in str(caught.value)
    with pytest.raises(ConfigError) as bad:
        Endpoint("ftp://user:sk-SECRET@x/v1?key=SECRET", "judge")
    assert "SECRET" not in str(bad.value)


def test_a_short_key_changes_no_answer(server: ChatServer) -> None:
    assert answers(Endpoint(server.url, "judge", key="said")) == ["said: 0"]


def test_compressed_replies_are_not_asked_for_and_not_read(server: ChatServer) -> None:
    server.plan(b"gzip" + gzip.compress(chat_reply("x" * (1 << 20))))
    assert answers(Endpoint(server.url, "judge"))[0].startswith("no: the reply is compressed")
    assert server.requests[0].headers["accept-encoding"] == "identity"


def test_redirects_are_not_followed(server: ChatServer) -> None:
    with ChatServer(lambda _: "stolen") as other:
        server.plan(always=b"307" + f"{other.url}/chat/completions".encode())
        with pytest.raises(EndpointError, match=r"does not serve judge \(307"):
            answers(Endpoint(server.url, "judge", key="secret"))
        assert not other.requests and len(server.requests) == 1


@pytest.mark.parametrize("fault", ["503", "reset", "429:0"])
def test_faults_of_all_requests_stop(server: ChatServer, fault: str) -> None:
    model = Patient(Endpoint(server.url, "judge", concurrency=2), patience=QUICK)
    server.plan(*["ok"] * 6, always=fault)
    with pytest.raises(EndpointError, match="requests to judge had no answer"):
        answers(model, 100)
    assert len(server.requests) < 6 + 2 * (1 + 4 * 3) + 4
    server.plan(*[fault, fault, fault, "ok"] * 5)
    assert answers(Patient(Endpoint(server.url, "judge", concurrency=1), patience=QUICK), 5)[-1] == "said: 4"


def test_timeouts_of_all_requests_stop(server: ChatServer) -> None:
    server.plan(*["ok"] * 3, always="stall")
    with pytest.raises(EndpointError, match=r"no answer within 0\.2 s"):
        answers(Patient(Endpoint(server.url, "judge", timeout=0.2), patience=QUICK), 100)


@pytest.mark.parametrize("fault", ["403", "404"])
def test_a_refusal_of_all_requests_stops_after_answers_too(server: ChatServer, fault: str) -> None:
    server.plan(*["ok"] * 5, always=fault)
    with pytest.raises(EndpointError, match="refuses every request"):
        answers(Endpoint(server.url, "judge", concurrency=1), 100)
    assert len(server.requests) == 5 + (8 if fault == "403" else 1)
    server.plan("ok", *["403", "ok"] * 9)
    assert answers(Endpoint(server.url, "judge", concurrency=1), 19)[1::2] == ["no: 403: status 403"] * 9


def test_a_stall_ends_after_the_timeout(server: ChatServer) -> None:
    server.plan("stall")
    model = Patient(Endpoint(server.url, "judge", timeout=1.0), patience=QUICK)
    assert answers(model) == ["said: 0"]
    server.plan(always="stall")
    assert answers(Endpoint(server.url, "judge", timeout=0.1)) == ["no: no answer within 0.1 s"]


def test_a_wrong_key_stops_at_once_and_is_not_shown() -> None:
    with ChatServer(lambda _: "ok", key="right") as server:
        model = Patient(Endpoint(server.url, "judge", key="wrong-secret"), patience=QUICK)
        with pytest.raises(EndpointError, match=r"refuses the key \(401: .*\*\*\*") as caught:
            answers(model, 20)
        assert "wrong-secret" not in str(caught.value) and KEY_VARIABLE in str(caught.value)
        assert len(server.requests) <= model.concurrency
        assert answers(Endpoint(server.url, "judge", key="right")) == ["ok"]


@pytest.mark.parametrize(("fault", "what"), [("404", "refuses every request"), ("402", "does not serve")])
def test_what_no_request_can_mend_stops_at_once(server: ChatServer, fault: str, what: str) -> None:
    server.plan(always=fault)
    with pytest.raises(EndpointError, match=what):
        answers(Patient(Endpoint(server.url, "judge"), patience=QUICK), 20)


def test_one_bad_request_among_good_ones_fails_alone(server: ChatServer) -> None:
    server.plan("ok", "400")
    model = Patient(Endpoint(server.url, "judge", concurrency=1), patience=QUICK)
    assert answers(model, 3) == ["said: 0", "no: 400: status 400", "said: 2"]
    server.plan(always="400")
    with pytest.raises(EndpointError, match="refuses every request"):
        answers(Endpoint(server.url, "judge"), 20)


def test_nobody_there_is_an_error() -> None:
    with ChatServer(lambda _: "") as server:
        url = server.url
    with pytest.raises(EndpointError, match="Nothing answers at"):
        answers(Patient(Endpoint(url, "judge"), patience=QUICK), 20)
    with pytest.raises(EndpointError, match="Nothing answers at"):  # a single request is tried again before
        answers(Patient(Endpoint(url, "judge"), patience=QUICK))


@pytest.mark.parametrize(
    "url", ["localhost:11434", "ftp://x/v1", "http://", "http://[::1", "http://x:y/v1", "http://☃.example/v1", ""]
)
def test_bad_addresses_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        Endpoint(url, "judge")


def test_the_key_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert key_from(KEY_VARIABLE) == ""
    monkeypatch.setenv("MY_KEY", " abc\n")
    assert key_from("MY_KEY") == "abc"
    with pytest.raises(ConfigError, match="OTHER_KEY"):
        key_from("OTHER_KEY")
    with pytest.raises(ConfigError) as caught:
        Endpoint("http://localhost/v1", "judge", key="a\nsecret")
    assert "secret" not in str(caught.value)


def test_settings_that_a_model_refuses_are_left_out() -> None:
    """As newer models of OpenAI do."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    from tests.kit.chat_server import Request, reply

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            wrong = next((name for name in ("max_tokens", "temperature") if name in body), None)
            message = f"Unsupported parameter: '{wrong}' is not supported with this model."
            error = json.dumps({"error": {"message": message, "param": wrong, "code": "unsupported_parameter"}}).encode()
            data = error if wrong else reply(json.dumps(sorted(body)), Request(0.0, "", {}, body))
            time.sleep(0.02)  # so that several requests have the wrong settings
            self.send_response(400 if wrong else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    model = Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1", "o9", concurrency=4)
    assert answers(model, 9) == ['["max_completion_tokens", "messages", "model"]'] * 9
    server.shutdown()
    server.server_close()


def test_retry_after_is_a_number_or_a_date() -> None:
    assert [retry_after(value) for value in ("7", " 1.5 ", "soon", "-3", None, "9" * 30)] == [7.0, 1.5, None, None, None, None]
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT", now=1445412450.0) == 30.0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT", now=1445412500.0) == 0.0


def test_an_endpoint_that_asks_to_wait_for_hours_is_an_error(server: ChatServer) -> None:
    server.plan("429:7200")
    with pytest.raises(EndpointError, match="asks to wait 2 h"):
        answers(Patient(Endpoint(server.url, "judge"), patience=QUICK))


class Said:
    """A model that takes a time, and counts its tokens."""

    def __init__(self, fake: FakeTime, tokens: int = 10) -> None:
        self.name, self.concurrency, self.times, self.tokens = "said", 50, [], tokens
        self._fake = fake

    async def answer(self, messages: Messages, max_tokens: int) -> Answer:
        self.times.append((self._fake.time, self.tokens))
        return Answer(messages[-1]["content"], self.tokens, 0)

    async def close(self) -> None:
        pass


def test_retry_after_holds_for_all_requests() -> None:
    fake = FakeTime()

    class Busy(Said):
        async def answer(self, messages: Messages, max_tokens: int) -> Answer:
            answer = await super().answer(messages, max_tokens)
            if len(self.times) == 5:
                raise NoAnswer("too many", again=True, wait=30.0, limited=True)
            return answer

    busy = Busy(fake)
    assert answers(Patient(busy, RateLimit(clock=fake.clock)), 60) == [str(i) for i in range(60)]
    assert [time for time, _ in busy.times] == [100.0] * 5 + [130.0] * 56


def test_no_span_of_a_minute_has_more_requests_than_the_limit() -> None:
    fake = FakeTime()
    said = Said(fake)
    assert answers(Patient(said, RateLimit(requests=7, clock=fake.clock)), 40) == [str(i) for i in range(40)]
    times = [time for time, _ in said.times]
    assert most_in_a_span(times, 60.0) == 7
    assert times[-1] - times[0] == pytest.approx(300.0, abs=0.01)  # 40 requests are five full minutes and a part


def test_no_span_of_a_minute_has_more_tokens_than_the_limit() -> None:
    fake = FakeTime()
    said = Said(fake, tokens=28)  # as many as are estimated: 8 for the message, 20 for the answer
    answers(Patient(said, RateLimit(tokens=100, clock=fake.clock)), 20)
    assert most_in_a_span([time for time, _ in said.times], 60.0) == 3
    fake = FakeTime()
    said = Said(fake, tokens=500)  # more than estimated: what was really used counts
    answers(Patient(said, RateLimit(tokens=100, clock=fake.clock)), 3)
    assert most_in_a_span([time for time, _ in said.times], 60.0) == 1


def test_backoff_grows_and_ends() -> None:
    fake = FakeTime()

    class Broken(Said):
        async def answer(self, messages: Messages, max_tokens: int) -> Answer:
            raise NoAnswer("broken", again=True)

    patience = Patience(retries=6, first=1.0, longest=10.0)
    model = Patient(Broken(fake), RateLimit(clock=fake.clock), patience, chance=lambda: 0.0)
    assert answers(model) == ["no: broken"]
    assert fake.slept == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


@pytest.mark.parametrize("limits", [{"requests": 0}, {"tokens": -1}])
def test_impossible_limits_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="too few"):
        RateLimit(**limits)


def test_nonsense_is_sent_back_with_what_is_wrong(server: ChatServer) -> None:
    def read(text: str) -> int:
        if not text.isdecimal():
            raise Nonsense("it is no number")
        return int(text)

    usage = Usage()
    server.plan("prose", "huge")
    with pytest.raises(NoAnswer, match="no usable answer in 3 tries; the last: it is no number"):
        complete(ask(Endpoint(server.url, "judge"), QUESTION, read, max_tokens=5, tries=3, usage=usage))
    again = server.requests[2].body["messages"]
    assert again[:2] == QUESTION and [message["role"] for message in again[2:]] == ["assistant", "user"]
    assert len(again[2]["content"]) <= 300 and "it is no number" in again[3]["content"]
    assert usage.requests == 3


def test_an_error_ends_all_workers_and_keeps_its_type() -> None:
    done = []

    async def work(i: int) -> None:
        await asyncio.sleep(0)
        if i == 3:
            raise EndpointError("gone")
        done.append(i)
        await asyncio.sleep(0.01)

    with pytest.raises(EndpointError, match="gone"):
        complete(for_each(range(1000), work, 4))
    assert len(done) < 20


def test_a_running_event_loop_is_no_obstacle() -> None:
    """As in a notebook."""

    async def notebook() -> int:
        async def inner() -> int:
            return 7

        return complete(inner())

    assert asyncio.run(notebook()) == 7


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.just("x\ud800"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["choices", "message", "content", "error", "code", "usage", "text", "detail"]), inner)
    ),
    max_leaves=12,
)


@hypothesis.given(_JSON | st.fixed_dictionaries({"choices": st.lists(st.fixed_dictionaries({"message": _JSON}))}), st.binary())
@hypothesis.settings(max_examples=50)
def test_any_reply_is_an_answer_or_a_reason(facts: object, junk: bytes) -> None:
    for body in (json.dumps(facts).encode(), junk):
        with contextlib.suppress(NoAnswer):
            answer = answer_of(Reply(200, {}, body), QUESTION)
            assert answer.text.encode() and answer.tokens_in >= 0 and answer.tokens_out >= 0
        for status in (400, 429, 500):
            refusal = refusal_of(Reply(status, {"retry-after": junk.decode("latin-1")}, body))
            assert refusal.message.encode() and len(refusal.message) <= 200 and (refusal.wait or 0) >= 0
        unwanted_setting(Reply(400, {}, body), {"max_tokens": "max_tokens"})
