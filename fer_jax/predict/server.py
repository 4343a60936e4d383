"""The page's HTTP server, on Starlette and uvicorn (the extra `page`).

It answers requests of its own page only, stores nothing, and limits sizes, times and the number of
requests. Networks run in threads, so that other requests are handled meanwhile.
"""

import asyncio
import collections
import contextlib
import ipaddress
import json
import secrets
import socket
import tempfile
import traceback
import urllib.parse
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from fer_jax.errors import InputError
from fer_jax.inference.recognizer import Recognizer
from fer_jax.media.video import Video
from fer_jax.predict import page
from fer_jax.predict.page import LIMITS, LOOPBACK, Limits

HEADERS = {
    "Content-Security-Policy": "default-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
    "Connection": "close",
}
# Of an upload that is too large this many times the limit is still read: a browser whose
# connection is closed while it sends does not read the reason.
DROPPED = 4
COOKIE = "fer_jax_token"
MAX_CONNECTIONS = 256  # of one address, requests or not


def make_server(
    recognizer: Recognizer, limits: Limits = LIMITS, host: str = LOOPBACK, token: str = ""
) -> Any:
    """Returns a uvicorn server; `run(sockets=[...])` serves until Ctrl-C or `should_exit`.

    With a `token` it answers only who has it: from the URL "/?token=TOKEN", which keeps it in a
    cookie, or in a header "Authorization: Bearer TOKEN".
    """
    views = _Views(recognizer, limits)
    errors = (HTTPException, InputError, ClientDisconnect, Exception)
    app = Starlette(
        routes=[
            Route("/", views.page),
            Route("/picture", views.picture, methods=["POST"]),
            Route("/clip", views.clip, methods=["POST"]),
        ],
        middleware=[Middleware(_Guard, limits=limits, host=host, token=token)],
        exception_handlers=dict.fromkeys(errors, _on_error),
    )
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # `_on_error` prints tracebacks
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=limits.waiting_s,
        # Accepted at once, before any is closed because its address has too many.
        backlog=128,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


class _Protocol(H11Protocol):
    """Closes connections that send no request, or do not read the response, in time.

    And those of an address that has too many: each is an open file, whose number is limited.
    """

    of_address: collections.Counter[str] = collections.Counter()  # by address

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] (as uvicorn has it)
        super().connection_made(transport)
        self._unread: asyncio.TimerHandle | None = None
        self._address = (self.client or ("",))[0]
        self.of_address[self._address] += 1
        if self.of_address[self._address] > MAX_CONNECTIONS:
            transport.abort()
        self.loop.call_later(self.timeout_keep_alive, self._close_without_request)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.of_address[self._address] -= 1

    def _close_without_request(self) -> None:
        if self.cycle is None:
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.timeout_keep_alive, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread:
            self._unread.cancel()


class _Guard:
    """Limits the number of requests, refuses those of other pages, adds the security headers."""

    def __init__(self, app: ASGIApp, *, limits: Limits, host: str, token: str) -> None:
        self._app, self._limits, self._token = app, limits, token
        self._requests: collections.Counter[str] = collections.Counter()  # by address
        self._names = {name.lower() for name in (socket.gethostname(), "localhost", host)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if self._token and self._is_token(request.query_params.get("token", "")):
                    kept = f"{COOKIE}={urllib.parse.quote(self._token)}"
                    headers["Set-Cookie"] = f"{kept}; HttpOnly; SameSite=Strict; Path=/"
            await send(message)

        request = Request(scope)
        client = (scope["client"] or ("",))[0]
        if refusal := self._refusal(client, request.headers) or self._unknown(request):
            await self._drop_body(receive)
            await refusal(scope, receive, send_with_headers)
            return
        self._requests[client] += 1
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            self._requests[client] -= 1

    def _unknown(self, request: Request) -> Response | None:
        """Refuses who lacks the token, if there is one."""
        given = (
            request.headers.get("authorization", "").removeprefix("Bearer "),
            urllib.parse.unquote(request.cookies.get(COOKIE, "")),
            request.query_params.get("token", ""),
        )
        if not self._token or any(map(self._is_token, given)):
            return None
        return _error(401, "the token is missing or wrong; open the URL that was printed")

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._token.encode())

    def _refusal(self, client: str, headers: Headers) -> Response | None:
        limit = self._limits.requests
        if self._requests.total() >= limit or self._requests[client] >= limit // 2:
            return _error(503, "too many requests; try again")
        host, site = headers.get("host", ""), headers.get("sec-fetch-site", "none")
        try:
            name = urllib.parse.urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if not name:
            return _error(400, "the Host header is malformed")
        if not self._is_own_name(name):
            return _error(403, "this URL is not the page's own")
        if headers.get("origin") in (None, f"http://{host}", f"https://{host}"):
            if site in ("same-origin", "none"):
                return None
        return _error(403, "only the page may send requests")

    def _is_own_name(self, name: str) -> bool:
        """Whether a Host header's name is this server's.

        Another site can let its own name resolve to this machine (DNS rebinding). Its requests
        then have that name; they cannot have an IP address.
        """
        with contextlib.suppress(ValueError):
            return name in self._names or bool(ipaddress.ip_address(name))
        return False

    async def _drop_body(self, receive: Receive) -> None:
        """Reads a refused upload for a while: see `DROPPED`."""
        size = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.waiting_s):
                while size <= DROPPED * self._limits.picture_bytes:
                    message = await receive()
                    size += len(message.get("body", b""))
                    if not message.get("more_body"):
                        return


class _Views:
    """What each URL returns."""

    def __init__(self, recognizer: Recognizer, limits: Limits) -> None:
        self._recognizer, self._limits = recognizer, limits
        self._html = page.render(recognizer, limits)
        self._computing = asyncio.Semaphore(limits.computing)

    async def page(self, request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            "img-src data: blob:; media-src blob: mediastream:; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        html = self._html.replace("NONCE", nonce)
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    async def picture(self, request: Request) -> Response:
        data = bytearray()
        await self._receive(request, self._limits.picture_bytes, data.extend)
        async with self._turn():
            result = await run_in_threadpool(
                page.picture_result,
                self._recognizer,
                bytes(data),
                max_pixels=self._limits.pixels,
                explain=request.url.query != "live",
            )
        return JSONResponse(result)

    async def clip(self, request: Request) -> Response:
        lines = self._clip(request)
        # Until the first line is there, a clip can still be refused.
        return _ClipResponse(await anext(lines), lines)

    async def _clip(self, request: Request) -> AsyncGenerator[bytes, None]:
        # The file is deleted while it is open, so nothing is left behind, however this ends.
        with tempfile.NamedTemporaryFile(prefix="fer_jax_", suffix=".clip") as file:
            await self._receive(request, self._limits.clip_bytes, file.write)
            file.flush()
            video = await run_in_threadpool(Video, Path(file.name))
        with video:
            async with self._turn():
                lines = page.clip_lines(self._recognizer, video, self._limits)
                try:
                    async for line in iterate_in_threadpool(lines):
                        yield json.dumps(line).encode() + b"\n"
                finally:
                    # Also when the client has left, and before the video is closed.
                    with anyio.CancelScope(shield=True):
                        await run_in_threadpool(lines.close)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Waits until fewer requests are computing."""
        try:
            await asyncio.wait_for(self._computing.acquire(), self._limits.waiting_s)
        except TimeoutError:
            raise HTTPException(503, "other requests are being processed; try again") from None
        try:
            yield
        finally:
            self._computing.release()

    async def _receive(
        self, request: Request, max_bytes: int, write: Callable[[bytes], object]
    ) -> None:
        """Reads an upload part by part; what is over `max_bytes` is not kept."""
        size, waiting_s = 0, self._limits.waiting_s
        try:
            async with asyncio.timeout(4 * waiting_s):
                parts = request.stream()
                while part := await asyncio.wait_for(anext(parts), waiting_s):
                    size += len(part)
                    if size <= max_bytes:
                        write(part)
                    elif size > DROPPED * max_bytes:
                        break
        except TimeoutError:
            raise HTTPException(408, "the upload took too long") from None
        if size > max_bytes:
            raise HTTPException(413, f"the file is larger than {max_bytes // 2**20} MiB")


class _ClipResponse(StreamingResponse):
    """Sends lines as they come; closes their generator when it ends or the client leaves."""

    def __init__(self, first: bytes, lines: AsyncGenerator[bytes, None]) -> None:
        async def content() -> AsyncIterator[bytes]:
            yield first
            async for line in lines:
                yield line

        super().__init__(content(), media_type="application/x-ndjson")
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._lines):
            await super().__call__(scope, receive, send)


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)


async def _on_error(request: Request, error: Exception) -> Response:
    match error:
        case HTTPException():
            return _error(error.status_code, error.detail)
        case InputError():
            return _error(400, str(error))
        case ClientDisconnect():
            return _error(400, "the upload was cancelled")  # the client has left
    traceback.print_exception(error)
    return _error(500, "internal error; the server has printed a traceback")
