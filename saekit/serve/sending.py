"""Streams of the model worker as responses. A client that goes away stops its generation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress

from fastapi import Request
from fastapi.responses import StreamingResponse

from saekit.serve.stream import Event, Stream

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # proxies are not to collect the events


@asynccontextmanager
async def watched(request: Request, stream: Stream) -> AsyncIterator[None]:
    """Within the block, the stream is closed, so that its iteration ends, where the client goes away."""
    watch = asyncio.create_task(_until_gone(request, stream))
    try:
        yield
    finally:
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch


async def _until_gone(request: Request, stream: Stream) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    stream.close()


async def collect(request: Request, stream: Stream, take: Callable[[Event], object]) -> None:
    """Give every event to `take`.

    Raises:
        Exception: what ended the stream.
    """
    try:
        async with watched(request, stream):
            async for event in stream:
                take(event)
    finally:
        stream.close()


async def server_sent(
    request: Request,
    stream: Stream,
    chunks: Callable[[Event], Iterable[str]],
    end: Callable[[Exception | None], AsyncIterator[str]],
) -> StreamingResponse:
    """A response of server-sent events, once the first event of the stream is there: an error before it is raised.

    Args:
        chunks: the texts to send for an event.
        end: the texts to send at the end, which an error may have made.
    """
    events = aiter(stream)
    try:
        async with watched(request, stream):
            first = await anext(events, None)
    except BaseException:
        stream.close()
        raise

    async def send() -> AsyncIterator[str]:
        error: Exception | None = None
        try:
            if first is not None:
                for text in chunks(first):
                    yield text
            try:
                async for event in events:
                    for text in chunks(event):
                        yield text
            except Exception as raised:
                error = raised
            async for text in end(error):
                yield text
        finally:
            stream.close()

    return StreamingResponse(send(), media_type="text/event-stream", headers=_HEADERS)
