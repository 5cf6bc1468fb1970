"""The official client of OpenAI against the endpoint, over HTTP."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

openai = pytest.importorskip("openai")

if TYPE_CHECKING:
    from openai import OpenAI

    from saekit.serve.state import Served
    from tests.serve.conftest import Client

PROMPT = "Once upon a time, there was a little girl named"


@pytest.fixture(scope="module")
def workspace(served_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the study with a vector and an intervention."""
    import shutil

    from saekit.names.site import Site
    from saekit.steer.vectors import SteeringVector
    from saekit.workspace import interventions, vectors
    from saekit.workspace.workspace import Workspace

    folder = Path(shutil.copytree(served_workspace, tmp_path_factory.mktemp("openai") / "study"))
    ws = Workspace.open(folder)
    generator = torch.Generator().manual_seed(0)
    vectors.keep(ws, "odd", SteeringVector(torch.randn(64, generator=generator), Site.parse("resid_post.2")))
    interventions.keep(ws, "seven", ws.intervention(["7:3norm"]))
    return folder


@pytest.fixture(scope="module")
def at(workspace: Path) -> Iterator[tuple[str, Served]]:
    """The address of a server over the workspace, and what it serves."""
    from saekit.serve.app import create_app
    from tests.kit.serving import serving

    app = create_app([workspace])
    with serving(app) as address:
        yield address, app.state.served


@pytest.fixture(scope="module")
def client(at: tuple[str, Served]) -> OpenAI:
    return openai.OpenAI(base_url=at[0] + "/v1", api_key="none", max_retries=0)


def alone(at: tuple[str, Served], prompt: str, specs: list[Any], max_new_tokens: int = 12, **settings: Any) -> str:
    """What the model itself generates."""
    from saekit.workspace.interventions import described

    ws = at[1].workspaces["study"].workspace
    made = ws.lm.generate(
        prompt, interventions=[described(ws, specs)] if specs else [], max_new_tokens=max_new_tokens, **settings
    )
    return made.texts[0]


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["base", "base+odd", "base+seven"]
    assert client.models.retrieve("base+odd:0.8norm").id == "base+odd:0.8norm"
    with pytest.raises(openai.NotFoundError, match="base\\+odd"):
        client.models.retrieve("gpt-4o")


@pytest.mark.parametrize(
    ("model", "specs"),
    [("base", []), ("base+odd", ["odd"]), ("base+odd:2norm", ["odd:2norm"]), ("base+seven", ["7:3norm"]), ("study/base", [])],
)
def test_a_completion_is_that_of_the_model(client: OpenAI, at: tuple[str, Served], model: str, specs: list[Any]) -> None:
    made = client.completions.create(model=model, prompt=PROMPT, max_tokens=12, temperature=0)
    assert made.choices[0].text == alone(at, PROMPT, specs)
    assert made.choices[0].finish_reason == "length"
    assert made.usage is not None
    assert made.usage.completion_tokens == 12
    assert made.usage.prompt_tokens == len(at[1].workspaces["study"].workspace.lm.text.ids([PROMPT])[0])
    stream = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=12, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == made.choices[0].text
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage == made.usage


def test_steering_changes_the_text(client: OpenAI) -> None:
    texts = {
        client.completions.create(model=model, prompt=PROMPT, max_tokens=12, temperature=0).choices[0].text
        for model in ("base", "base+odd:2norm", "base+seven")
    }
    assert len(texts) == 3


SPECS: list[list[Any]] = [
    [],
    ["7:3norm"],
    ["resid_post.2/9:2"],
    ["neuron:2/17:2max"],
    [{"target": "head:3.2", "op": "scale", "strength": 0}],
    ["odd:2norm"],
    [{"target": "odd", "op": "ablate", "positions": "all"}],
    [{"target": "7", "op": "add", "strength": "1norm", "positions": [1, 3]}, "11:1norm"],
]


def test_eight_at_once_are_what_each_is_alone(client: OpenAI, at: tuple[str, Served]) -> None:
    """Other interventions, prompts and samplings at the same time; twice, streamed and not."""
    prompts = [PROMPT, "Tom was", "The big red dog saw a cat and", "Lily", PROMPT, PROMPT, "Tom was", PROMPT]

    def ask(number: int, stream: bool) -> str:
        sampling: dict[str, Any] = {"temperature": 0} if number % 2 else {"temperature": 0.7, "top_p": 0.9, "seed": number}
        made = client.completions.create(
            model="base",
            prompt=prompts[number],
            max_tokens=10 + number,
            stream=stream,
            extra_body={"interventions": SPECS[number]},
            **sampling,
        )
        return "".join(chunk.choices[0].text for chunk in made) if stream else made.choices[0].text

    def wanted(number: int) -> str:
        sampling: dict[str, Any] = {"do_sample": False}
        if not number % 2:
            sampling = {"temperature": 0.7, "top_p": 0.9, "top_k": 0, "seed": number}
        return alone(at, prompts[number], SPECS[number], 10 + number, **sampling)

    alone_texts = [wanted(number) for number in range(8)]
    assert len(set(alone_texts)) == 8
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda number: ask(number, False), range(8))) == alone_texts
        assert list(pool.map(lambda number: ask(number, True), range(8))) == alone_texts


def test_a_chat(client: OpenAI, at: tuple[str, Served]) -> None:
    messages: Any = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello!"}]
    made = client.chat.completions.create(model="base+odd", messages=messages, max_completion_tokens=9, temperature=0)
    (choice,) = made.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == alone(at, "System: Be kind.\nUser: Hello!\nAssistant:", ["odd"], 9)
    stream = client.chat.completions.create(
        model="base+odd", messages=messages, max_completion_tokens=9, temperature=0, stream=True
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    assert chunks[-1].choices[0].finish_reason == choice.finish_reason


def test_several_prompts_and_answers(client: OpenAI, at: tuple[str, Served]) -> None:
    prompts = ["Tom was", PROMPT]
    made = client.completions.create(model="base", prompt=prompts, n=2, max_tokens=5, seed=3, temperature=1.5)
    settings: dict[str, Any] = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "seed": 3, "n_samples": 2}
    ws = at[1].workspaces["study"].workspace
    wanted = ws.lm.generate(prompts, max_new_tokens=5, **settings).texts
    assert [choice.text for choice in made.choices] == wanted
    assert [choice.index for choice in made.choices] == [0, 1, 2, 3]


def test_stop_echo_and_log_probabilities(client: OpenAI, at: tuple[str, Served]) -> None:
    whole = alone(at, PROMPT, [])
    stop = whole[8:12]
    made = client.completions.create(
        model="base", prompt=PROMPT, max_tokens=12, temperature=0, stop=[stop, "@"], echo=True, logprobs=2
    )
    (choice,) = made.choices
    assert choice.finish_reason == "stop"
    assert choice.text.endswith(PROMPT + whole[: whole.index(stop)])
    found = choice.logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.token_logprobs is not None
    lm = at[1].workspaces["study"].workspace.lm
    prompt = lm.text.ids([PROMPT])[0]
    logits = lm.run([prompt], logits="all").logits
    assert logits is not None
    logp = logits[0].log_softmax(-1)
    assert found.token_logprobs[0] is None
    for t, token in enumerate(prompt[1:]):
        assert found.token_logprobs[t + 1] == pytest.approx(float(logp[t, token]), abs=1e-4)
    scored = client.completions.create(model="base", prompt=prompt, max_tokens=0, echo=True, logprobs=0)
    assert scored.choices[0].logprobs is not None
    assert scored.choices[0].logprobs.token_logprobs == pytest.approx(found.token_logprobs[: len(prompt)], nan_ok=True)
    chat = client.chat.completions.create(
        model="base", messages=[{"role": "user", "content": "Hi"}], max_tokens=3, logprobs=True, top_logprobs=2, temperature=0
    )
    assert chat.choices[0].logprobs is not None
    for each in chat.choices[0].logprobs.content or []:
        assert each.logprob == each.top_logprobs[0].logprob


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"model": "gpt-4o"}, "NotFoundError", "does not exist"),
        ({"model": "base+none"}, "NotFoundError", "does not exist"),
        ({"model": "../../etc/base"}, "NotFoundError", "does not exist"),
        ({"max_tokens": 100_000}, "APIStatusError", "allows"),
        ({"prompt": "word " * 600}, "BadRequestError", "context"),
        ({"temperature": 9}, "BadRequestError", "temperature"),
        ({"prompt": [1, 10**9]}, "BadRequestError", "id from 0"),
        ({"extra_body": {"interventions": ["99999:1norm"]}}, "NotFoundError", "99999"),
        ({"extra_body": {"interventions": ["/etc/passwd"]}}, "APIStatusError", "passwd"),
        ({"extra_body": {"interventions": ["../steering/odd.safetensors:1"]}}, "APIStatusError", "odd"),
        ({"extra_body": {"interventions": [{"target": "7", "strenght": 1}]}}, "BadRequestError", "strenght"),
        ({"extra_body": {"interventions": [{"target": "7", "op": "explode"}]}}, "BadRequestError", "explode"),
        ({"extra_body": {"interventions": ["7:1norm", "7:2norm"]}}, "BadRequestError", "7"),
        ({"extra_body": {"interventions": [{"target": "7", "positions": [500]}]}}, "BadRequestError", "position 500"),
        ({"extra_body": {"interventions": [{"target": "7", "positions": [[1], [2]]}]}}, "BadRequestError", "one"),
        ({"extra_body": {"suffix": "!"}}, "BadRequestError", "suffix"),
        ({"logit_bias": {"5": 1}}, "BadRequestError", "logit_bias"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_in_the_format_of_the_api(client: OpenAI, fields: dict[str, Any], error: str, said: str, stream: bool) -> None:
    asked: dict[str, Any] = {"model": "base", "prompt": PROMPT, "max_tokens": 4, "stream": stream} | fields
    with pytest.raises(getattr(openai, error), match=said) as raised:
        list(client.completions.create(**asked))
    assert raised.value.body["message"]
    assert raised.value.body["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"model": "base", "prompt": "\xff"}', b"{", b""])
def test_a_body_that_cannot_be_read_is_the_fault_of_the_client(open_client: Client, workspace: Path, body: bytes) -> None:
    answer = open_client(workspace).post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_full_queue_is_429_and_the_rest_is_answered(client: OpenAI, at: tuple[str, Served]) -> None:
    worker, opened = at[1].worker, at[1].workspaces["study"]
    go = threading.Event()
    held = worker.call("study", opened.workspace, lambda lm: go.wait(120))
    _until(lambda: worker.running == 1)
    waiting = [worker.call("study", opened.workspace, lambda lm: 1) for _ in range(worker.limits.waiting)]
    try:
        with pytest.raises(openai.RateLimitError, match="waiting"):
            client.completions.create(model="base", prompt=PROMPT)
        assert client.models.list().data
    finally:
        go.set()
    assert held.result(120)
    assert all(each.result(120) == 1 for each in waiting)


def test_200_slow_clients_and_one_that_works(client: OpenAI, at: tuple[str, Served]) -> None:
    """Clients that send half a request, that never read their stream, and that hang up at once."""
    host, port = at[0].removeprefix("http://").split(":")
    body = b'{"model": "base", "prompt": "Tom was", "max_tokens": 200, "stream": true}'
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n".encode()
    whole = head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    slow = []
    for number in range(200):
        each = socket.create_connection((host, int(port)))
        each.sendall((head, whole[:-10], whole)[number % 3])
        slow.append(each)
        if number % 6 == 5:
            each.close()
    start = time.perf_counter()
    assert client.models.list().data
    assert time.perf_counter() - start < 30  # what an idle server needs is milliseconds; the rest is for busy machines
    for each in slow:
        each.close()
    _until(lambda: at[1].worker.waiting == 0 and at[1].worker.running == 0)
    assert client.completions.create(model="base", prompt=PROMPT, max_tokens=2, temperature=0).choices[0].text


def test_a_client_that_hangs_up_stops_its_generation(client: OpenAI, at: tuple[str, Served]) -> None:
    """Streamed or not, what the model would still have said is not computed."""
    worker = at[1].worker
    steps: list[int] = []
    lm = at[1].workspaces["study"].workspace.lm
    hook = lm.model.register_forward_pre_hook(lambda *_: (steps.append(1), time.sleep(0.01))[1])
    try:
        stream = client.completions.create(model="base", prompt=PROMPT, max_tokens=400, stream=True, temperature=1.9, seed=0)
        next(iter(stream))
        stream.close()
        _until(lambda: worker.running == 0)
        streamed = len(steps)
        with pytest.raises(openai.APITimeoutError):
            client.completions.create(model="base", prompt=PROMPT, max_tokens=400, temperature=1.9, seed=0, timeout=0.3)
        _until(lambda: worker.running == 0)
    finally:
        hook.remove()
    assert streamed < 200
    assert len(steps) - streamed < 200


def test_posts_of_other_sites_are_refused(open_client: Client, workspace: Path) -> None:
    browser = open_client(workspace)
    for path in ("/v1/completions", "/v1/chat/completions", "/api/steer"):
        refused = browser.post(path, json={"prompt": "x"}, headers={"Origin": "https://evil.example"})
        assert refused.status_code == 403


def _until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)
