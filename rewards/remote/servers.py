"""Requests to one or several HTTP servers that do the same: pooled connections, health checks, retries, a deadline."""

import asyncio
import contextlib
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx2

from rewards.remote.addresses import checked_url, stays_here
from rewards.remote.server_answers import ServerError, described, read_body, reason
from rewards.remote.statuses import is_busy, is_passing, rest_asked_for, status_of
from uniar.errors import UserError

_HEALTH_SECONDS = 5.0
_CONNECT_SECONDS = 10.0
_COOLDOWN_SECONDS = (0.25, 15.0)
# uvicorn, which serves vLLM, SGLang and our own rewards, closes idle connections after 5 seconds.
_KEEPALIVE_SECONDS = 4.0


class _Unusable(Exception):
    """An attempt that is worth another one. `status`: the HTTP status, None without an answer; `seconds`: for how long
    the server asked to be left alone, None where it did not say."""

    def __init__(self, message: str, status: int | None = None, seconds: float | None = None):
        super().__init__(message)
        self.status, self.busy, self.seconds = status, status is not None and is_busy(status), seconds


@dataclass
class _Server:
    url: str
    client: httpx2.AsyncClient
    allowed: float
    """requests in flight: halved when it is busy, and one more each time as many as that succeeded"""
    in_flight: int = 0
    failures: int = 0
    """since a request last succeeded, at requests and health checks"""
    refusals: int = 0
    """since a request last succeeded, because it was busy"""
    well: bool = True
    """whether it has not failed, or passed a health check since"""
    failed_at: float = 0.0
    refused_at: float = 0.0
    rests_until: float = 0.0
    checking: asyncio.Lock = field(default_factory=asyncio.Lock)


class ServerPool:
    """Spreads POST requests over servers: each goes to the one with the fewest in flight.

    A server that failed rests, longer each time and with jitter, and must answer a health check before it gets another
    request; meanwhile the others get them. One that is busy (425, 429, 503, 529) rests for as long as it says, else
    longer each time, and gets fewer requests at a time until they succeed again; what it refused is asked again until
    the deadline, however often. A request is repeated only where that is safe and of use: requests must not change
    anything at the server, and it was not reached, hung up, answered 408, 425, 429 or 5xx, or too late.

    Requests to this machine never go through a proxy that the environment names, whatever other servers there are.

    Args:
        urls: one or several, http or https.
        token: sent as bearer token; None for none.
        health: path that answers GET with 200 when a server is well; None: no checks.
        timeout: seconds for one attempt.
        attempts: of one request that fail, over all servers.
        concurrency: requests in flight at a time, per server.

    Raises UserError for URLs and numbers that cannot work. Belongs to one event loop at a time and follows when it is
    used from another.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        token: str | None = None,
        health: str | None = None,
        timeout: float = 60.0,
        attempts: int = 4,
        concurrency: int = 4,
    ):
        self.urls = [checked_url(url) for url in ([urls] if isinstance(urls, str) else urls)]
        if not self.urls or len(set(self.urls)) < len(self.urls):
            raise UserError(f"url is {urls!r}; at least one server, each once, is needed.")
        for name, value, least in (("attempts", attempts, 1), ("concurrency", concurrency, 1)):
            if value < least:
                raise UserError(f"{name} is {value}; at least {least} is needed.")
        check_seconds("timeout", timeout)
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.health, self._timeout, self._attempts = health, timeout, attempts
        self._concurrency = concurrency
        self._loop: asyncio.AbstractEventLoop | None = None

    async def post(
        self,
        path: str,
        make: Callable[[], bytes],
        deadline: float,
        otherwise: Callable[[ServerError], bool] = lambda error: False,
    ) -> bytes:
        """The body of the answer to a JSON request.

        Args:
            path: appended to a server's URL.
            make: gives the request's body; called in a thread when its turn has come.
            deadline: in the event loop's time. Nothing outlasts it.
            otherwise: told of an answer that is final; whether to make another request in its place.

        Raises ServerError, with the last reason, when the attempts or the time are used up or the answer is final.
        """
        self._attach()
        reasons: list[str] = []
        try:
            async with asyncio.timeout_at(deadline), self._slots:
                while True:
                    try:
                        return await self._answered(path, await asyncio.to_thread(make), reasons)
                    except ServerError as error:
                        if not otherwise(error):
                            raise
        except TimeoutError:
            what = reasons[-1] if reasons else f"{' and '.join(self.urls)} did not answer"
            raise ServerError(f"{what}; the deadline has passed") from None

    async def _answered(self, path: str, content: bytes, reasons: list[str]) -> bytes:
        failed, status = 0, None
        while failed < self._attempts:
            server = await self._next_server(reasons)
            started = asyncio.get_running_loop().time()
            try:
                return await self._attempt(server, path, content)
            except _Unusable as problem:
                reasons.append(str(problem))
                self._let_rest(server, started, problem)
                failed, status = failed + (not problem.busy), problem.status
        times = "" if self._attempts == 1 else f" (after {self._attempts} attempts)"
        raise ServerError(f"{reasons[-1]}{times}", status)

    def get(self, path: str) -> dict[str, bytes | ServerError]:
        """What each server answers to GET `path`, within a few seconds. From any thread, whether or not it has an event
        loop of its own that runs, as a notebook's has."""

        async def one(url: str) -> bytes | ServerError:
            problem = ServerError(f"{url} did not answer within {_HEALTH_SECONDS:g} s")
            try:
                async with asyncio.timeout(_HEALTH_SECONDS), self._client(url) as client:
                    while True:
                        async with client.stream("GET", url + path) as answer:
                            body = await read_body(answer, url)
                        if answer.status_code == 200:
                            return body
                        problem = ServerError(described(url, answer, body), answer.status_code)
                        if not is_busy(answer.status_code):
                            return problem
                        await asyncio.sleep(rest_asked_for(answer.headers) or _COOLDOWN_SECONDS[0])
            except TimeoutError:
                return problem
            except ServerError as error:
                return error
            except Exception as error:  # httpx's own, and what names and sockets raise below it
                return ServerError(f"{url} {reason(error)}")

        async def every() -> list[bytes | ServerError]:
            return await asyncio.gather(*map(one, self.urls))

        with ThreadPoolExecutor(1) as thread:
            return dict(zip(self.urls, thread.submit(asyncio.run, every()).result(), strict=True))

    def close(self) -> None:
        """Closes the connections; from any thread but the event loop's own while that runs."""
        loop, self._loop = self._loop, None
        if loop is None or loop.is_closed():
            return
        if loop.is_running():
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(self._aclose(), loop).result(timeout=5)
        else:
            loop.run_until_complete(self._aclose())

    async def _aclose(self) -> None:
        for server in self._servers:
            await server.client.aclose()

    def _client(self, url: str) -> httpx2.AsyncClient:
        """A client for one server. A proxy that the environment names is for the world outside this machine; a client
        with a transport of its own has none, while certificates are still those of the environment."""
        # One more than requests in flight, for the health checks.
        limits = httpx2.Limits(
            max_connections=self._concurrency + 1,
            max_keepalive_connections=self._concurrency,
            keepalive_expiry=_KEEPALIVE_SECONDS,
        )
        try:
            return httpx2.AsyncClient(
                headers=self._headers,
                timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),  # the rest is bounded as a whole, see _attempt
                limits=limits,
                transport=httpx2.AsyncHTTPTransport(limits=limits) if stays_here(httpx2.URL(url).host) else None,
            )
        except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
            raise ServerError(f"{url} cannot be asked with the environment's proxy or certificates: {error}") from error

    def _attach(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        self._servers = [_Server(url, self._client(url), self._concurrency) for url in self.urls]
        self._slots = asyncio.Semaphore(self._concurrency * len(self.urls))
        self._changed = asyncio.Event()
        self._loop = loop

    async def _next_server(self, reasons: list[str]) -> _Server:
        """The server for the next attempt, once there is one."""
        while True:
            now = asyncio.get_running_loop().time()
            free = [one for one in self._servers if one.rests_until <= now and one.in_flight + 1 <= one.allowed]
            if not free:
                rests = [one.rests_until - now for one in self._servers if one.rests_until > now]
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(rests, default=None)):
                        await self._changed.wait()
                continue
            server = min(free, key=lambda one: (not one.well, one.in_flight))
            if server.well or self.health is None:
                return server
            await self._is_well(server, reasons)

    async def _is_well(self, server: _Server, reasons: list[str]) -> None:
        """Asks a server that failed for its health, and lets it rest where it is not well."""
        async with server.checking:  # one check answers for all that wait for it
            now = asyncio.get_running_loop().time()
            if server.well or server.rests_until > now:
                return
            try:
                await self._attempt(server, self.health, None, _HEALTH_SECONDS)
                server.well = True
            except (_Unusable, ServerError) as problem:
                reasons.append(str(problem))
                self._let_rest(server, now, problem)

    async def _attempt(self, server: _Server, path: str, content: bytes | None, seconds: float | None = None) -> bytes:
        """One request. Raises _Unusable, or ServerError where another attempt would come to the same."""
        seconds = min(self._timeout, seconds or self._timeout)
        method, headers = ("GET", {}) if content is None else ("POST", {"Content-Type": "application/json"})
        started = asyncio.get_running_loop().time()
        server.in_flight += 1
        try:
            # As a whole: a server that sends a byte a second would never run into httpx's own timeouts.
            async with asyncio.timeout(seconds):
                async with server.client.stream(method, server.url + path, content=content, headers=headers) as answer:
                    body = await read_body(answer, server.url)
        except TimeoutError:
            raise _Unusable(f"{server.url} did not answer within {seconds:g} s") from None
        except httpx2.RequestError as error:
            raise _Unusable(f"{server.url} {reason(error)}") from error
        except ServerError:
            raise
        except Exception as error:  # what names and sockets raise below httpx
            raise ServerError(f"{server.url} {reason(error)}") from error
        finally:
            server.in_flight -= 1
            self._changed.set()
            self._changed = asyncio.Event()
        status = status_of(answer.status_code, body)
        if status == 200:
            if content is not None:  # a server may be well by its own account, and fail at every request
                server.failures, server.well = 0, True
                if started >= server.refused_at:
                    server.refusals = 0
                    server.allowed = min(self._concurrency, server.allowed + 1 / server.allowed)
            return body
        said = described(server.url, answer, body)
        if not is_passing(status):
            raise ServerError(said, status)
        raise _Unusable(said, status, rest_asked_for(answer.headers))

    def _let_rest(self, server: _Server, started: float, problem: Exception) -> None:
        """Keeps a server from getting requests: for the time it asked for, else for longer each time in a row."""
        now, (least, most) = asyncio.get_running_loop().time(), _COOLDOWN_SECONDS
        busy, asked = getattr(problem, "busy", False), getattr(problem, "seconds", None)
        # One outage, or one time too many requests, is seen by several that were under way.
        seen = started < (server.refused_at if busy else server.failed_at)
        count = server.refusals if busy else server.failures
        if not seen and busy:
            server.refusals, server.refused_at, server.allowed = count + 1, now, max(1.0, server.allowed / 2)
        elif not seen:
            server.failures, server.failed_at, server.well = count + 1, now, False
        if asked is not None:
            rest = asked * random.uniform(1.0, 1.25)
        elif seen:
            return
        else:
            rest = min(most, least * 2 ** min(count, 10)) * random.uniform(0.5, 1.0)
        server.rests_until = max(server.rests_until, now + rest)


def read_token(variable: str | None) -> str | None:
    """The token in an environment variable; None without one. Raises UserError for one that no header can carry."""
    token = os.environ.get(variable, "").strip() if variable else ""
    if not token.isascii() or not (token == "" or token.isprintable()):
        raise UserError(f"the token in {variable} has characters that a header cannot carry; plain ASCII is needed.")
    return token or None


def check_seconds(name: str, seconds: float) -> None:
    """Raises UserError unless it is a time that can be waited for."""
    if not 0 < seconds < 1e6:
        raise UserError(f"{name} is {seconds:g} seconds; more than 0 and less than a million are needed.")
