"""Rewards behind HTTP: POST /v1/score (rewards/wire.py has its format), GET /v1/rewards and GET /health.

Whatever a client sends wrong is answered with a 4xx status and {"error": "one sentence"}. Nothing that arrives is
unpickled or evaluated, sizes are checked before anything is unpacked, and a token is compared in constant time.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from uvicorn import Config, Server

from rewards.addresses import is_loopback
from rewards.batching import ScoringThread
from rewards.suite import RewardSuite
from rewards.wire import encode_answer, read_request
from rewards.wire_images import BadRequest, Limits
from uniar.errors import UserError

logger = logging.getLogger(__name__)

TOKEN_LENGTH = 16
"""characters that a token has at least"""

_PARSERS = 2  # requests unpacked at a time: each may for a moment need several times the size of its body
_DISCARD_SECONDS = 5.0
_STATUS_OF_NO_ONE = 499  # nginx's, for a client that has gone; it is never sent


class _Desk:
    """What the routes share: the thread that scores, and how many bytes of requests are held."""

    def __init__(self, suite: RewardSuite, scoring: ScoringThread, limits: Limits):
        self.suite, self.scoring, self.limits = suite, scoring, limits
        self.parsing = asyncio.Semaphore(_PARSERS)
        self._held = 0

    @contextlib.contextmanager
    def holding(self, count: int) -> Iterator[None]:
        """Counts bytes as held within the block. Raises BadRequest (429) where too many are already."""
        if self._held and self._held + count > self.limits.resident_bytes:
            raise BadRequest("too many requests are waiting for their scores; try again in a second.", 429)
        self._held += count
        try:
            yield
        finally:
            self._held -= count

    async def score(self, request: Request) -> Response:
        arriving = _Body(request, self.limits)
        try:
            _check_headers(request)
            with self.holding(arriving.announced()):
                body = await arriving.read()
                async with self.parsing:
                    asked = await asyncio.to_thread(read_request, body, self.suite.names, self.limits)
                del body
        except BadRequest:
            await arriving.discard()
            raise
        with self.holding(sum(3 * image.width * image.height for image in asked.batch.images)):
            return await self._scored(request, asked)

    async def _scored(self, request: Request, asked: Any) -> Response:
        job = asyncio.wrap_future(self.scoring.submit(asked))
        gone = asyncio.create_task(_until_gone(request))
        try:
            await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not job.done():
                job.cancel()  # its turn may not have come yet
                return Response(status_code=_STATUS_OF_NO_ONE)
            return Response(encode_answer(job.result()), media_type="application/json")
        finally:
            gone.cancel()


class _Body:
    """A request's body, read no further than its limits."""

    def __init__(self, request: Request, limits: Limits):
        self._request, self._limits, self._ended = request, limits, False

    def announced(self) -> int:
        """Bytes that it may have: what its header says, or the limit where it says nothing. Raises BadRequest."""
        text = self._request.headers.get("content-length")
        if text is None:
            return self._limits.body_bytes
        if not text.isascii() or not text.isdigit():
            raise BadRequest(f"the header Content-Length is {text[:40]!r}, which is no number.")
        if len(text) > 18 or int(text) > self._limits.body_bytes:
            raise BadRequest(f"the body has {text[:40]} bytes; at most {self._limits.body_bytes} are taken.", 413)
        return int(text)

    async def read(self) -> bytes:
        """All of it. Raises BadRequest where it is too large or too slow."""
        body, limits = bytearray(), self._limits
        try:
            async with asyncio.timeout(limits.body_seconds):
                while not self._ended:
                    body += await self._chunk()
                    if len(body) > limits.body_bytes:
                        raise BadRequest(f"the body is larger than the {limits.body_bytes} bytes that are taken.", 413)
        except TimeoutError:
            raise BadRequest(f"the body did not arrive within {limits.body_seconds:g} seconds.", 408) from None
        return bytes(body)

    async def discard(self) -> None:
        """Lets the rest of it pass, within bounds: a client that is cut off while it writes may never see why."""
        passed = 0
        with contextlib.suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(min(_DISCARD_SECONDS, self._limits.body_seconds)):
                while not self._ended and passed <= 2 * self._limits.body_bytes:
                    passed += len(await self._chunk())

    async def _chunk(self) -> bytes:
        message = await self._request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self._ended = not message.get("more_body", False)
        return message.get("body", b"")


def create_app(suite: RewardSuite, *, limits: Limits | None = None, token: str | None = None) -> FastAPI:
    """The application. Weights must be loaded already.

    Args:
        suite: what is served, each reward under its name. Those with `offload` have their weights on the GPU as long as
            it serves.
        limits: on what a request may be; None for the defaults.
        token: what clients must send as `Authorization: Bearer …`, on all paths but /health; None: nothing.
    """
    limits = limits or Limits()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with suite.on_device(), contextlib.closing(ScoringThread(suite, limits.samples)) as scoring:
            app.state.desk = _Desk(suite, scoring, limits)
            yield

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)

    @app.get("/health")
    async def health() -> Response:
        return _json({"status": "ok"})

    @app.get("/v1/rewards")
    async def rewards(request: Request) -> Response:
        _authorize(request, token)
        served = [{"name": reward.name, "pointwise": reward.pointwise} for reward in suite.rewards]
        return _json({"rewards": served, "limits": {"samples": limits.samples, "body_bytes": limits.body_bytes}})

    @app.post("/v1/score")
    async def score(request: Request) -> Response:
        _authorize(request, token)
        return await request.app.state.desk.score(request)

    @app.exception_handler(BadRequest)
    async def refuse(request: Request, error: BadRequest) -> Response:
        headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}.get(error.status, {})
        # The rest of a body that was not read to its end would be taken for the connection's next request.
        return _json({"error": str(error)}, error.status, {**headers, "Connection": "close"})

    @app.exception_handler(HTTPException)
    async def refuse_path(request: Request, error: HTTPException) -> Response:
        paths = "GET /health, GET /v1/rewards and POST /v1/score are served here"
        return _json({"error": f"{error.detail}: {paths}."}, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def forget(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=_STATUS_OF_NO_ONE)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        return _json({"error": "the server failed; its log says why."}, 500)

    return app


def _json(content: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(json.dumps(content), status, headers, media_type="application/json")


def _check_headers(request: Request) -> None:
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        # Not only a matter of form: a page in a browser may send any other type here without asking first.
        raise BadRequest("the header Content-Type must be application/json.", 415)
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise BadRequest("a compressed body is not taken; leave the header Content-Encoding out.", 415)


def _authorize(request: Request, token: str | None) -> None:
    if token is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # Bytes: compare_digest takes no text beyond ASCII, and a header may have any byte.
    same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token.encode("utf-8"))
    if scheme.lower() != "bearer" or not same:
        raise BadRequest("the header Authorization: Bearer with this server's token is needed.", 401)


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# Running it ----------------------------------------------------------------------------------------------------------


def check_access(host: str, token: str | None) -> None:
    """Raises UserError for an address that others can reach without a token, and for a token that can be guessed."""
    if token is not None and (len(token) < TOKEN_LENGTH or not token.isascii() or not token.isprintable()):
        raise UserError(f"the token has {len(token)} characters; at least {TOKEN_LENGTH}, all plain ASCII, are needed.")
    if token is None and not is_loopback(host):
        raise UserError(
            f"--host {host} can be reached from other machines, which needs a token: set UNIAR_REWARDS_TOKEN or give "
            "--token-file."
        )


def bind(host: str, port: int) -> socket.socket:
    """A socket at the address, which refuses connections until it listens; port 0 takes a free one. Raises UserError
    where that cannot be had."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port is {port}; a port is a number from 0 to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UserError(f"cannot listen on {host} port {port}: {error.strerror or error}.") from error
    return listener


def build_server(app: FastAPI, drain_seconds: float) -> Server:
    """A uvicorn server: no access log, no headers that say what it is, and requests in flight are answered before it
    ends, for at most `drain_seconds`."""
    return Server(
        Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="on",
            timeout_keep_alive=75,  # longer than clients keep idle connections, so that they never use a closed one
            timeout_graceful_shutdown=max(1, round(drain_seconds)),
        )
    )


@contextlib.contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Serves on a free port of this machine from a thread, as long as the block lasts; gives the URL."""
    listener = bind("127.0.0.1", 0)
    listener.listen(128)
    server = build_server(app, drain_seconds=5)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="reward server")
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def run_server(server: Server, listener: socket.socket) -> None:
    """Serves until a SIGINT or SIGTERM, then answers what is in flight and returns."""
    # uvicorn ends gracefully on these and then sends itself the signal again, for the handler that was there before.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
