"""A server on loopback that speaks chat completions, and has faults by plan::

with ChatServer(lambda messages: "LABEL: dogs") as server:
    server.plan("503", "nonsense", "ok")      # the first requests, in the order in which they come
    Endpoint(server.url, "judge")
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Messages = list[dict[str, str]]
TEXTS = {
    "prose": "Sure! Here is what I think about these texts.",
    "empty": "",
    "refuses": "I'm sorry, but I can't help with that.",
    "language": "LABEL: 关于动物的词",
    "huge": "LABEL: " + "x" * 200_000,
    "two": "LABEL: dogs\nLABEL: cats",
    "thought": "<think>LABEL: not this one</think>\n",
}
"""Answers that are no label, by the name of the fault."""
_BODIES = {
    "no json": b"<html>It works!</html>",
    "wrong shape": b'{"choices": "many"}',
    "no choices": b'{"choices": []}',
    "a list": b"[1, 2, 3]",
    "megabytes": b'{"choices": [{"message": {"content": "' + b"x" * (3 << 20) + b'"}}]}',
    "deep": b"[" * 100_000,
}


@dataclass(frozen=True)
class Request:
    """One request that came."""

    time: float
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    @property
    def text(self) -> str:
        """All that the messages say."""
        return "\n".join(message["content"] for message in self.body["messages"])


@dataclass
class ChatServer:
    """The server, which runs while the object is used as a context manager.

    Args:
        answer: what the model says to messages; may take its time.
        key: the only key that is accepted; None: any.
        context: characters of the longest chat that the model reads; None: any number.
        seconds: of a stall.
    """

    answer: Callable[[Messages], str]
    key: str | None = None
    context: int | None = None
    seconds: float = 30.0
    requests: list[Request] = field(default_factory=list)
    always: str | bytes = "ok"
    """Fault of requests that the plan does not speak of."""

    def __post_init__(self) -> None:
        self._plan: deque[str | bytes] = deque()
        self.lock = threading.Lock()
        self.ended = threading.Event()

    def plan(self, *faults: str | bytes, always: str | bytes = "ok") -> None:
        """What happens to the next requests, and what to all after them: ok, a status (503), 429:SECONDS, reset, stall,
        truncate, or a name of :data:`TEXTS` or of a body that is no reply. Bytes are the body itself, after `gzip` or `400`
        where it is one; after `307`, they are an address."""
        with self.lock:
            self._plan, self.always = deque(faults), always

    def next(self, request: Request) -> str | bytes:
        with self.lock:
            self.requests.append(request)
            return self._plan.popleft() if self._plan else self.always

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"server_of": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: ChatServer

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        own = self.server_of
        request = Request(time.monotonic(), self.path, {k.lower(): v for k, v in self.headers.items()}, body)
        fault = own.next(request)
        try:
            if own.key is not None and self.headers.get("Authorization") != f"Bearer {own.key}":
                sent = self.headers.get("Authorization")
                self._send(401, _error(f"Incorrect API key provided: {sent}", "invalid_api_key"))
            elif not self.path.partition("?")[0].endswith("/chat/completions"):
                self._send(404, _error(f"Not found: {self.path}", "not_found"))
            elif own.context is not None and len(request.text) > own.context:
                self._send(400, _error("This model's maximum context length is 99 tokens.", "context_length_exceeded"))
            else:
                self._go(fault, request)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _go(self, fault: str | bytes, request: Request) -> None:
        if isinstance(fault, bytes):
            self._send_body(fault)
            return
        status, _, after = fault.partition(":")
        if status.isdecimal():
            headers = {"Retry-After": after} if after else {}
            self._send(int(status), _error(f"status {status}", "planned"), headers)
        elif fault == "reset":  # closing with a linger of 0 sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        elif fault == "stall":
            self.server_of.ended.wait(self.server_of.seconds)
            self.close_connection = True
        elif fault in _BODIES:
            self._send(200, _BODIES[fault])
        else:
            text = TEXTS[fault] if fault in TEXTS else self.server_of.answer(list(request.body["messages"]))
            self._send(200, reply(text, request), cut=fault == "truncate")

    def _send_body(self, body: bytes) -> None:
        if body.startswith(b"307"):
            self._send(307, b"", {"Location": body[3:].decode()})
        elif body.startswith(b"400"):
            self._send(400, body[3:])
        elif body.startswith(b"gzip"):
            self._send(200, body[4:], {"Content-Encoding": "gzip"})
        else:
            self._send(200, body)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.wfile.flush()
        if cut:
            self.close_connection = True


def reply(text: str, request: Request) -> bytes:
    """A reply as chat completions have it."""
    usage = {"prompt_tokens": len(request.text.split()), "completion_tokens": len(text.split())}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    facts = {"id": "chat", "object": "chat.completion", "model": request.body["model"], "choices": [choice], "usage": usage}
    return json.dumps(facts).encode()


def _error(message: str, code: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": code, "code": code}}).encode()


def most_in_a_span(times: Iterable[float], seconds: float) -> int:
    """The largest number of times that lie within any span of so many seconds."""
    ordered = sorted(times)
    return max((sum(start <= time < start + seconds for time in ordered) for start in ordered), default=0)
