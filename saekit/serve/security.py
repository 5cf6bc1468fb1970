"""What every request has to pass, and what every response says to the browser.

A page of another origin cannot read or change anything: the name in the Host header has to be one of this server's (which stops
DNS rebinding), and the Origin header, where there is one, has to be this server (which stops cross-site requests).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from http import cookies
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saekit.serve.settings import ServeSettings

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        # plotly adds its rules to an empty style element, of which this is the hash, and has elements with an attribute style
        "style-src 'self'",
        "style-src-elem 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='",
        "style-src-attr 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_TOKEN = "token"
_SAFE = ("GET", "HEAD", "OPTIONS")


class Guard:
    """Refuses requests of other sites, without the token, or too large ones, and sets the headers of every response.

    Args:
        app: the application that gets the requests which pass.
        settings: names, token and limits.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        sending = _with_headers(send)
        refused = self._refused(scope, headers) or self._unknown(scope, headers)
        if refused is None and scope["method"] not in _SAFE:
            body = await self._body(headers, receive)
            if isinstance(body, Response):
                refused = body
            else:
                receive = _replayed(body, receive)
        if refused is not None:
            await refused(scope, receive, sending)
            return
        await self._app(scope, receive, sending)

    def _refused(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to a request of another site; None for one of this site or of a program."""
        hosts = headers.getlist("host")
        names = self._settings.hosts
        if len(hosts) != 1 or (names is not None and _name(hosts[0]) not in names):
            return PlainTextResponse("This name is not one of this server's. Open it as http://127.0.0.1.", 421)
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{hosts[0].lower()}", f"https://{hosts[0].lower()}"):
            return PlainTextResponse("Requests from other sites are refused.", 403)
        navigates = scope["method"] == "GET" and headers.get("sec-fetch-mode", "navigate") == "navigate"
        if headers.get("sec-fetch-site", "none") in ("cross-site", "same-site") and not navigates:
            return PlainTextResponse("Requests from other sites are refused.", 403)
        return None

    def _unknown(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to a client without the token; None for one that has it, or where none is needed.

        A client gives the token once in the address, and has it in a cookie from then on; or in the header Authorization.
        """
        token = self._settings.token
        if token is None:
            return None
        cookie, kept = _cookie_name(scope), _digest(token)
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(bearer.strip(), token):
            return None
        jar = cookies.SimpleCookie()
        try:
            jar.load(headers.get("cookie", ""))
        except cookies.CookieError:
            jar.clear()
        if cookie in jar and _same(jar[cookie].value, kept):
            return None
        fields = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in fields if name == _TOKEN]
        if scope["method"] == "GET" and given and _same(given[0], token):
            rest = urlencode([each for each in fields if each[0] != _TOKEN])
            path = "/" + quote(scope["path"]).lstrip("/")  # `//host` would lead to another site
            answer = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
            answer.set_cookie(cookie, kept, httponly=True, samesite="strict")
            return answer
        text = (
            "This server asks for its token: open the address that `saekit serve` printed, or send Authorization: Bearer TOKEN."
        )
        return PlainTextResponse(text, 401, {"WWW-Authenticate": "Bearer"})

    async def _body(self, headers: Headers, receive: Receive) -> bytes | Response:
        """The whole body, or the answer to one that is too large or too slow."""
        most = self._settings.max_body
        large = PlainTextResponse(f"The request is larger than {most:,} bytes.", 413, {"Connection": "close"})
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > most:
            return large
        found = bytearray()
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return PlainTextResponse("The client went away.", 400)
                    found += message.get("body", b"")
                    if len(found) > most:
                        return large
                    more = message.get("more_body", False)
        except TimeoutError:
            return PlainTextResponse("The request came too slowly.", 408, {"Connection": "close"})
        return bytes(found)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, then what comes after it: the news that the client went away."""
    waiting = [body]

    async def receiving() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return receiving


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _cookie_name(scope: Scope) -> str:
    """Cookies are shared by the ports of a name, so the port is in the name."""
    return f"saekit-{(scope.get('server') or ('', 0))[1]}"


def _digest(token: str) -> str:
    return hashlib.sha256(b"saekit serve\n" + token.encode()).hexdigest()


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode("utf-8", "surrogatepass"))
