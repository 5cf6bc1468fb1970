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
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from feature_db.chat.model import Answer, Messages, NoAnswer
from feature_db.chat.replies import MOST_BYTES, Reply, answer_of, refusal_of, unwanted_setting
from saekit.errors import ConfigError, EndpointError, MissingPackage
from saekit.version import VERSION

if TYPE_CHECKING:
    import httpx

KEY_VARIABLE = "SAEKIT_API_KEY"
_REFUSED = 8  # requests that are refused before any was answered: then all will be
_NOBODY, _GONE = 4, 64  # requests in a row that find nobody, before and after any was answered
_PATH = "/chat/completions"


class Endpoint:
    """The chat model behind an endpoint. Nothing is sent before :meth:`answer`.

    Args:
        url: address of the API, as `http://localhost:11434/v1`; with or without `/chat/completions`.
        model: the model's name there.
        key: sent as a bearer token; empty: none is sent. It is never stored, and cut out of messages.
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
        return f"Endpoint({self.url!r}, {self.name!r})"

    async def answer(self, messages: Messages, max_tokens: int) -> Answer:
        """See :meth:`feature_db.chat.model.ChatModel.answer`. One request is sent.

        Raises:
            NoAnswer: there is no answer to this request.
            EndpointError: nothing has ever answered there, or the endpoint refuses the key, the model or all requests.
        """
        used = dict(self._settings)  # other requests may change them meanwhile
        reply = await self._ask(messages, max_tokens)
        while (name := unwanted_setting(reply, used)) is not None:  # newer models of OpenAI refuse some settings
            self._settings[name] = "max_completion_tokens" if name == "max_tokens" else None
            used = dict(self._settings)
            reply = await self._ask(messages, max_tokens)
        if reply.status == 200:
            found = answer_of(reply, messages)
            self._answered = True
            return found
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
            raise NoAnswer(f"no answer within {self._timeout:g} s", again=True) from error
        except (self._httpx.ConnectError, self._httpx.ConnectTimeout) as error:
            raise self._unreachable(error) from error
        except (self._httpx.HTTPError, self._httpx.StreamError) as error:
            self._unreached = 0
            reason = self._clean(f"{type(error).__name__}: {error}")
            raise NoAnswer(f"the connection broke ({reason})", again=True) from error
        self._unreached = 0
        return reply

    async def _post(self, body: Mapping[str, Any]) -> Reply:
        client = self._client = self._client or self._open()
        async with client.stream("POST", self.url, json=body) as response:
            data = bytearray()
            async for part in response.aiter_bytes():
                data += part
                if len(data) > MOST_BYTES:
                    raise NoAnswer(f"the answer has more than {MOST_BYTES:,} bytes", again=True)
            return Reply(response.status_code, response.headers, bytes(data))

    def _open(self) -> httpx.AsyncClient:
        headers = {"User-Agent": f"saekit/{VERSION}"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        limits = self._httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        # Proxies from the environment are for other machines than this one. Reading certificates takes a while.
        secure = self.url.startswith("https:")
        return self._httpx.AsyncClient(
            headers=headers, timeout=self._timeout, limits=limits, trust_env=not self.local, verify=secure
        )

    def _unreachable(self, error: Exception) -> NoAnswer | EndpointError:
        self._unreached += 1
        reason = self._clean(str(error) or type(error).__name__)
        if self._unreached >= (_GONE if self._answered else _NOBODY):
            hint = "Start the server, or correct --endpoint. Nothing that was labelled is asked again."
            return EndpointError(f"Nothing answers at {self.url}: {reason}.", hint)
        return NoAnswer(f"no connection ({reason})", again=True)

    def _refusal(self, reply: Reply) -> NoAnswer | EndpointError:
        """The error for a reply that is no answer."""
        refusal = refusal_of(reply)
        what = self._clean(f"{reply.status}: {refusal.message}")
        hint = "Run the same command again when that is mended: nothing that was labelled is asked again."
        if reply.status == 401 or (reply.status == 403 and not self._answered):
            key = f"Put a valid key into the environment variable {KEY_VARIABLE}, or name another with --key-env."
            return EndpointError(f"{self.url} refuses the key ({what}).", key)
        if refusal.final or (300 <= reply.status < 400):
            return EndpointError(f"{self.url} does not serve {self.name} ({what}).", hint)
        if not self._answered and not refusal.again and not refusal.too_long:
            self._refused += 1
            if self._refused >= _REFUSED or reply.status in (404, 405):
                return EndpointError(f"{self.url} refuses every request for {self.name} ({what}).", hint)
        return NoAnswer(what, again=refusal.again, wait=refusal.wait, limited=refusal.limited, too_long=refusal.too_long)

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


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
    hint = "Give the address of an API, as http://localhost:11434/v1."
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"The endpoint {url!r} is no address: {error}.", hint) from error
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"The endpoint {url!r} is no address.", hint)
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
