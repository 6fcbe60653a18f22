"""A request from its first byte to its scores: read within limits of size, pace and memory, unpacked, scored."""

import asyncio
import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from rewards.remote.wire import read_request
from rewards.remote.wire_answers import encode_answer
from rewards.remote.wire_images import BadRequest, Limits
from rewards.serving.batching import ScoringThread
from rewards.serving.connections import is_proven, prove
from rewards.serving.memory import Lease, Memory
from rewards.suite import RewardSuite

_PARSERS = 2  # requests unpacked at a time
_COPIES = 4  # of a body that are there at a time: its JSON and the strings in it, or its files and their pixels, twice
_STEP = 2**18  # bytes by which a body's share of the memory grows
_DISCARD_SECONDS, _LOOK_SECONDS = 5.0, 0.05
STATUS_OF_NO_ONE = 499  # nginx's, for a client that has gone; it is never sent


class ServerState:
    """What the routes share: the threads that unpack and score, and how much memory requests hold."""

    def __init__(self, suite: RewardSuite, limits: Limits):
        """Starts the threads. suite: with its weights loaded."""
        self.suite, self.limits = suite, limits
        self.memory = Memory(limits.resident_bytes)
        self.scoring = ScoringThread(suite, limits.samples)
        # Threads of their own, and few: each keeps some of the memory that it ever needed.
        self.parsers = ThreadPoolExecutor(_PARSERS, "unpacking")

    def close(self) -> None:
        self.parsers.shutdown(wait=False, cancel_futures=True)
        self.scoring.close()

    async def score(self, request: Request) -> Response:
        """The answer with the scores. Raises BadRequest."""
        arriving = _Body(request, self.limits)
        with self.memory.lease() as lease:
            try:
                _check_headers(request)
                body = await arriving.read(lease)
                unpack = functools.partial(
                    read_request, body, self.suite.names, self.limits, admit=lambda count: _require(lease.hold(count))
                )
                asked = await asyncio.get_running_loop().run_in_executor(self.parsers, unpack)
                lease.claim(asked.batch_bytes, asked.scoring_bytes)
                await _until(lambda: lease.has_room(lease.own), self.limits.wait_seconds)
            except BadRequest:
                lease.claim(0, 0)
                await arriving.discard()
                raise
            prove(request)
            return await self._scored(request, asked)

    async def _scored(self, request: Request, asked: Any) -> Response:
        job = asyncio.wrap_future(self.scoring.submit(asked))
        gone = asyncio.create_task(_until_gone(request))
        try:
            await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not job.done():
                job.cancel()  # its turn may not have come yet
                return Response(status_code=STATUS_OF_NO_ONE)
            return Response(encode_answer(job.result()), media_type="application/json")
        finally:
            gone.cancel()


class _Body:
    """A request's body, read no further than its limits."""

    def __init__(self, request: Request, limits: Limits):
        self._request, self._limits, self._ended = request, limits, False

    async def read(self, lease: Lease) -> bytearray:
        """All of it. Raises BadRequest where it is too large or too slow, or finds no room.

        It waits until there is room for what it announces, and a proven client is given that. Of others only what has
        come is held: to announce costs nothing.
        """
        body, limits, loop = bytearray(), self._limits, asyncio.get_running_loop()
        announced = self._announced()
        take = lease.hold if is_proven(self._request) else lease.has_room
        await _until(lambda: take(_COPIES * announced), limits.wait_seconds)
        started = loop.time()
        try:
            while not self._ended:
                seconds = min(limits.body_seconds, limits.head_seconds + len(body) / limits.body_rate)
                async with asyncio.timeout_at(started + seconds):
                    chunk = await self._chunk()
                if len(body) + len(chunk) > limits.body_bytes:
                    raise BadRequest(f"the body is larger than the {limits.body_bytes} bytes that are taken.", 413)
                if _COPIES * (len(body) + len(chunk)) > lease.own:
                    _require(lease.hold(_COPIES * (len(body) + len(chunk)) + _STEP))
                body += chunk
        except TimeoutError:
            raise BadRequest(
                f"the body did not arrive within {limits.body_seconds:g} seconds, at {limits.body_rate} bytes per "
                "second or more.",
                408,
            ) from None
        return body

    def _announced(self) -> int:
        """Bytes that it will have, or 0 where its head does not say. Raises BadRequest."""
        text = self._request.headers.get("content-length", "0")
        if not text.isascii() or not text.isdigit():
            raise BadRequest(f"the header Content-Length is {text[:40]!r}, which is not a number.")
        if len(text) > 18 or int(text) > self._limits.body_bytes:
            raise BadRequest(f"the body has {text[:40]} bytes; at most {self._limits.body_bytes} are taken.", 413)
        return int(text)

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


def _check_headers(request: Request) -> None:
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        # Not only a matter of form: a page in a browser may send any other type here without asking first.
        raise BadRequest("the header Content-Type must be application/json.", 415)
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise BadRequest("a compressed body is not taken; leave the header Content-Encoding out.", 415)


async def _until(ready: Callable[[], bool], seconds: float) -> None:
    """Returns when it is so. Raises BadRequest (429) where it is not within so long."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not (there := ready()) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(_LOOK_SECONDS)
    _require(there)


def _require(room: bool) -> None:
    if not room:
        raise BadRequest("too many requests are waiting for their scores; try again in a second.", 429)


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
