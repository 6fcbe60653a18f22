"""Rewards behind HTTP: POST /v1/score (rewards/remote/wire.py has its format), GET /v1/rewards and GET /health.

Whatever a client sends wrong is answered with a 4xx status and {"error": "one sentence"}. Nothing that arrives is
unpickled or evaluated, sizes are checked before anything is unpacked, and a token is compared in constant time.
"""

import contextlib
import hmac
import json
import signal
import socket
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from uvicorn import Server

from rewards.remote.addresses import is_loopback
from rewards.remote.wire_images import BadRequest, Limits
from rewards.serving.connections import prove
from rewards.serving.server_state import STATUS_OF_NO_ONE, ServerState
from rewards.suite import RewardSuite
from uniar.errors import UserError

TOKEN_LENGTH = 16
"""characters that a token has at least"""


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
        with suite.on_device(), contextlib.closing(ServerState(suite, limits)) as app.state.server:
            yield

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.limits = limits

    @app.get("/health")
    async def health() -> Response:
        return _json({"status": "ok"})

    @app.get("/v1/rewards")
    async def rewards(request: Request) -> Response:
        _authorize(request, token)
        served = [
            {"name": reward.name, "pointwise": reward.pointwise, "needs_image": reward.needs_image}
            for reward in suite.rewards
        ]
        return _json({"rewards": served, "limits": {"samples": limits.samples, "body_bytes": limits.body_bytes}})

    @app.post("/v1/score")
    async def score(request: Request) -> Response:
        _authorize(request, token)
        return await request.app.state.server.score(request)

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
        return Response(status_code=STATUS_OF_NO_ONE)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        return _json({"error": "the server failed; its log says why."}, 500)

    return app


def _json(content: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(json.dumps(content), status, headers, media_type="application/json")


def _authorize(request: Request, token: str | None) -> None:
    if token is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # Bytes: compare_digest takes no text beyond ASCII, and a header may have any byte.
    same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token.encode("utf-8"))
    if scheme.lower() != "bearer" or not same:
        raise BadRequest("the header Authorization: Bearer with this server's token is needed.", 401)
    prove(request)


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


def run_server(server: Server, listener: socket.socket) -> None:
    """Serves until a SIGINT or SIGTERM, then answers what is in flight and returns."""
    # uvicorn ends gracefully on these and then sends itself the signal again, for the handler that was there before.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
