"""An endpoint that speaks OpenAI's chat completions: OpenAI itself, vLLM, Ollama, llama.cpp, OpenRouter, ...

The client is httpx alone: one request is one POST, and retries, limits and the size of an answer are decided here. OpenAI's own
client would retry by rules of its own, and read an answer of any size into memory.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from feature_db.chat.model import Answer, Messages, NoAnswer, NoUsableReply, Usage
from feature_db.chat.replies import MOST_BYTES, Reply, answer_of, refusal_of, unwanted_setting
from feature_db.chat.secrets import Secrets, without_query
from saekit.errors import ConfigError, EndpointError, MissingPackage
from saekit.version import VERSION

if TYPE_CHECKING:
    import httpx

KEY_VARIABLE = "SAEKIT_API_KEY"
_REFUSED = 8  # requests that are refused without an answer between them: then all will be
_NOBODY, _GONE = 4, 64  # requests in a row that find nobody, before and after any was answered
_PATH = "/chat/completions"
_HINT = "Give the address of an API, as http://localhost:11434/v1."


class Endpoint:
    """The chat model behind an endpoint. Nothing is sent before :meth:`answer`.

    Args:
        url: address of the API, as `http://localhost:11434/v1`; with or without `/chat/completions`.
        model: the model's name there.
        key: sent as a bearer token; empty: none is sent. It is never stored, and cut out of
            messages. So is the query of `url`, where some services want a key.
        timeout: seconds that one answer may take.
        concurrency: requests at once.

    Raises:
        ConfigError: the address is no URL, or holds a password; or a number is impossible.
        MissingPackage: httpx is not installed.
    """

    def __init__(self, url: str, model: str, *, key: str = "", timeout: float = 120.0, concurrency: int = 8) -> None:
        try:
            import httpx
        except ImportError as error:
            raise MissingPackage("httpx is not installed, and endpoints need it.", "pip install 'saekit[llm]'.") from error
        self._httpx = httpx
        self.url, self.local = _address(url)
        try:
            httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise ConfigError(f"The endpoint {without_query(url)!r} is no address: {error}.", _HINT) from error
        self.shown = without_query(self.url)
        self._secrets = Secrets(key, self.url)
        if not model.strip():
            raise ConfigError("The name of the model is empty.", "Give the name that the endpoint has for it.")
        if not timeout > 0 or concurrency < 1:
            raise ConfigError(f"timeout={timeout:g} and concurrency={concurrency} are not possible.", "Give more.")
        if re.search(r"[^\x21-\x7e]", key):
            raise ConfigError("The key holds white space or characters that no key has.", "Set the variable again.")
        self.name, self.concurrency, self._key, self._timeout = model, concurrency, key, timeout
        self._settings: dict[str, str | None] = {"max_tokens": "max_tokens", "temperature": "temperature"}
        self._client: httpx.AsyncClient | None = None
        self._answered, self._refused, self._unreached = False, 0, 0

    def __repr__(self) -> str:
        return f"Endpoint({self.shown!r}, {self.name!r})"

    async def answer(self, messages: Messages, max_tokens: int) -> Answer:
        """See :meth:`feature_db.chat.model.ChatModel.answer`. One request is sent; more only where settings are refused.

        Raises:
            NoAnswer: there is no answer to this request.
            EndpointError: nothing has ever answered there, or the endpoint refuses the key, the model or all requests.
        """
        used, requests = dict(self._settings), 1  # other requests may change them meanwhile
        reply = await self._ask(messages, max_tokens)
        while (name := unwanted_setting(reply, used)) is not None:  # newer models of OpenAI refuse some settings
            self._settings[name] = "max_completion_tokens" if name == "max_tokens" else None
            used, requests = dict(self._settings), requests + 1
            reply = await self._ask(messages, max_tokens)
        if reply.status == 200:
            found = answer_of(reply, messages, self._secrets.cut_from)
            self._answered, self._refused = True, 0
            return replace(found, text=self._secrets.cut_from_answer(found.text), requests=requests)
        raise self._refusal(reply)

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _ask(self, messages: Messages, max_tokens: int) -> Reply:
        values: dict[str, float] = {"max_tokens": max_tokens, "temperature": 0}
        settings = {name: values[key] for key, name in self._settings.items() if name is not None}
        sent = [{**message, "content": message["content"].encode("utf-8", "replace").decode()} for message in messages]
        body = {"model": self.name, "messages": sent, **settings}
        try:
            async with asyncio.timeout(self._timeout):
                reply = await self._post(body)
        except (TimeoutError, self._httpx.ReadTimeout) as error:
            raise NoAnswer(f"no answer within {self._timeout:g} s", again=True, usage=Usage(1)) from error
        except (self._httpx.ConnectError, self._httpx.ConnectTimeout) as error:
            raise self._unreachable(error) from error
        except (self._httpx.HTTPError, self._httpx.StreamError) as error:
            self._unreached = 0
            reason = self._secrets.cut_from(f"{type(error).__name__}: {error}")
            raise NoAnswer(f"the connection broke ({reason})", again=True, usage=Usage(1)) from error
        self._unreached = 0
        return reply

    async def _post(self, body: Mapping[str, Any]) -> Reply:
        client = self._client = self._client or self._open()
        async with client.stream("POST", self.url, json=body) as response:
            data = bytearray()
            if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
                reason = "the reply is compressed, which was not asked for"  # a small one could fill the memory
                raise NoUsableReply(reason, usage=Usage(1))
            async for part in response.aiter_raw():
                data += part
                if len(data) > MOST_BYTES:
                    raise NoUsableReply(f"the answer has more than {MOST_BYTES:,} bytes", again=True, usage=Usage(1))
            return Reply(response.status_code, response.headers, bytes(data))

    def _open(self) -> httpx.AsyncClient:
        headers = {"User-Agent": f"saekit/{VERSION}", "Accept-Encoding": "identity"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = self._httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        # Proxies from the environment are for other machines than this one. Reading certificates takes a while.
        secure = self.url.startswith("https:")
        return self._httpx.AsyncClient(
            headers=headers,
            timeout=self._timeout,
            limits=limits,
            trust_env=not self.local,
            verify=secure,
            follow_redirects=False,  # the prompts and the key go nowhere else
        )

    def _unreachable(self, error: Exception) -> NoAnswer | EndpointError:
        self._unreached += 1
        reason = self._secrets.cut_from(str(error) or type(error).__name__)
        if self._unreached >= (_GONE if self._answered else _NOBODY):
            hint = "Start the server, or correct --endpoint. Nothing that was labelled is asked again."
            return EndpointError(f"Nothing answers at {self.shown}: {reason}.", hint)
        return NoAnswer(f"no connection ({reason})", again=True)

    def _refusal(self, reply: Reply) -> NoAnswer | EndpointError:
        """The error for a reply that is no answer."""
        refusal = refusal_of(reply, self._secrets.cut_from)
        what = f"{reply.status}: {refusal.message}"
        hint = "Run the same command again when that is mended: nothing that was labelled is asked again."
        if reply.status == 401 or (reply.status == 403 and not self._answered):
            key = f"Put a valid key into the environment variable {KEY_VARIABLE}, or name another with --key-env."
            return EndpointError(f"{self.shown} refuses the key ({what}).", key)
        if refusal.final or (300 <= reply.status < 400):
            return EndpointError(f"{self.shown} does not serve {self.name} ({what}).", hint)
        if reply.status in (403, 404, 405) or not (self._answered or refusal.again or refusal.too_long):
            self._refused += 1  # a service may answer 403 to one text that it does not like
            if self._refused >= _REFUSED or reply.status in (404, 405):
                return EndpointError(f"{self.shown} refuses every request for {self.name} ({what}).", hint)
        return NoAnswer(
            what, again=refusal.again, wait=refusal.wait, limited=refusal.limited, too_long=refusal.too_long, usage=Usage(1)
        )


def key_from(variable: str) -> str:
    """The key in an environment variable; empty if there is no such variable.

    Raises:
        ConfigError: `variable` is named and does not exist.
    """
    key = os.environ.get(variable, "").strip()
    if not key and variable != KEY_VARIABLE:
        raise ConfigError(f"There is no environment variable {variable}, or it is empty.", f"export {variable}=...")
    return key


def _address(url: str) -> tuple[str, bool]:
    """The full address of chat completions, and whether it is on this machine."""
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"The endpoint {without_query(url)!r} is no address: {error}.", _HINT) from error
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"The endpoint {without_query(url)!r} is no address.", _HINT)
    if parts.username or parts.password:
        raise ConfigError("The address of the endpoint holds a user or a password.", f"Put the key into {KEY_VARIABLE}.")
    path = parts.path.rstrip("/")
    path = path if path.endswith(_PATH) else path + _PATH
    return parts._replace(path=path, fragment="").geturl(), _is_local(host)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
