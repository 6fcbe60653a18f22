"""Who may stay connected to a server: deadlines for what a client has begun, and a number of connections at a time.

uvicorn has neither. Its `limit_concurrency` counts connections that have sent nothing yet, and then answers 503 to
whoever does send a request: those who only connect displace those who have work.
"""

import asyncio
import os
import resource
import socket
from functools import partial
from typing import Any

from fastapi import Request
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from rewards.remote.wire_images import Limits

_BURST = 32  # connections that asyncio accepts before any of them is looked at
_SPARE_FILES = 4 * _BURST + 64  # accepted or closing, but not counted; and what rewards open as they score
_WAITING = 1024  # connections that the system keeps until they are accepted
_IDLE_SECONDS = 75  # longer than clients keep idle connections, so that they never use a closed one


class Connections:
    """Those that are open. Where there are too many, the oldest that has not been proven goes: a client sends its
    request as soon as it is connected, while one that does not can only be waited for.

    Args:
        most: of all; most_unproven: of those from which no request has come yet that was allowed and read.
        head_seconds: for the head of a request to arrive in.
    """

    def __init__(self, most: int, most_unproven: int, head_seconds: float):
        self.most, self.most_unproven, self.head_seconds = most, most_unproven, head_seconds
        self._open: set[Connection] = set()
        self._unproven: dict[Connection, None] = {}  # in the order they came

    def add(self, connection: "Connection") -> None:
        self._open.add(connection)
        self._unproven[connection] = None
        while self._unproven and (len(self._unproven) > self.most_unproven or len(self._open) > self.most):
            next(iter(self._unproven)).drop()

    def remove(self, connection: "Connection") -> None:
        self._open.discard(connection)
        self._unproven.pop(connection, None)

    def prove(self, connection: "Connection") -> None:
        self._unproven.pop(connection, None)

    def has_proven(self, connection: "Connection") -> bool:
        return connection not in self._unproven


class Connection(H11Protocol):
    """uvicorn's, with a deadline for each step that the client owes."""

    def __init__(self, *args: Any, connections: Connections, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.shared, self._due = connections, None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, "connection": self}
        self._expect(self.shared.head_seconds)
        self.shared.add(self)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._expect(self.shared.head_seconds)  # the rest of the head
        else:
            self._expect(None)  # rewards/serving/server_state.py sees to the body

    def on_response_complete(self) -> None:
        # uvicorn closes idle ones before, unless the client has not read its answer.
        self._expect(_IDLE_SECONDS + self.shared.head_seconds)
        super().on_response_complete()

    def connection_lost(self, error: Exception | None) -> None:
        self._expect(None)
        self.shared.remove(self)
        super().connection_lost(error)

    def drop(self) -> None:
        """Closes it at once."""
        self._expect(None)
        self.shared.remove(self)
        self.transport.abort()

    def _expect(self, seconds: float | None) -> None:
        """Drops it after so long; an earlier deadline stays, so that a byte now and then puts nothing off. None: lifts
        the deadline."""
        if self._due is not None:
            if seconds is not None and self._due.when() <= self.loop.time() + seconds:
                return
            self._due.cancel()
        self._due = None if seconds is None else self.loop.call_later(seconds, self.drop)


def prove(request: Request) -> None:
    """Takes a request's connection for one of a client; nothing under a server that is not of `build_server`."""
    if isinstance(connection := getattr(request.state, "connection", None), Connection):
        connection.shared.prove(connection)


def is_proven(request: Request) -> bool:
    connection = getattr(request.state, "connection", None)
    return isinstance(connection, Connection) and connection.shared.has_proven(connection)


class _Server(Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            # asyncio takes one number for the connections that wait and for those it accepts at a time.
            listener.listen(_WAITING)


def build_server(app: Any, drain_seconds: float, limits: Limits) -> Server:
    """A uvicorn server: no access log, no headers that say what it is, and requests in flight are answered before it
    ends, for at most `drain_seconds`."""
    most = max(min(limits.connections, _free_files() - _SPARE_FILES), 16)
    connections = Connections(most, min(limits.unproven_connections, max(most // 2, 8)), limits.head_seconds)
    return _Server(
        Config(
            app,
            http=partial(Connection, connections=connections),
            loop="asyncio",
            backlog=_BURST,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="on",
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=max(1, round(drain_seconds)),
        )
    )


def raise_file_limit() -> None:
    """Lets this process open as many files as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > 2**16:
        hard = 2**16  # some systems refuse the soft limit to be without end
    if soft != resource.RLIM_INFINITY and soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def _free_files() -> int:
    """Files that this process may still open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 2**16
    try:
        return soft - len(os.listdir("/dev/fd"))
    except OSError:
        return soft - 64
