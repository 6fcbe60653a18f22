"""An HTTP server in a thread that answers as a test wants it to, well or badly."""

import json
import socket
import ssl
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hostile:
    """`answer(request)` is called for each POST, in a thread of its own; see `Request`.

    Attributes: `url`; `posts`, the bodies as they came, with their `paths` and `headers`; `gets`, the paths that were
    asked for; `most_at_a_time`, POSTs that were answered at the same time; `connections`, as many as were made; `well`,
    whether /health says so.
    """

    def __init__(self, answer, listing):
        self.answer, self.listing, self.well = answer, listing, True
        self.posts, self.paths, self.gets, self.headers, self.connections = [], [], [], [], 0
        self.most_at_a_time, self._at_a_time, self._lock = 0, 0, threading.Lock()

    def respond(self, handler):
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        with self._lock:
            self.posts.append(json.loads(body))
            self.headers.append(dict(handler.headers))
            self.paths.append(handler.path)
            number = len(self.posts)
            self._at_a_time += 1
            self.most_at_a_time = max(self.most_at_a_time, self._at_a_time)
        try:
            self.answer(Request(handler, json.loads(body), number))
        finally:
            with self._lock:
                self._at_a_time -= 1


class Request:
    """A POST: its `content`, its `number` from 1, and the ways to answer it."""

    def __init__(self, handler, content, number):
        self.handler, self.content, self.number = handler, content, number

    def send(self, content, status=200, headers=(), length=None):
        """An answer; with a `length` beyond its own it breaks off midway."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.handler.send_response(status)
        for name, value in headers:
            self.handler.send_header(name, value)
        self.handler.send_header("Content-Length", str(len(body) if length is None else length))
        self.handler.end_headers()
        self.handler.wfile.write(body)
        if length is not None:
            self.drop()

    def drip(self, seconds):
        """An answer that never ends, a byte at a time."""
        self.handler.send_response(200)
        self.handler.send_header("Content-Length", "100000")
        self.handler.end_headers()
        for _ in range(round(seconds / 0.05)):
            self.handler.wfile.write(b" ")
            self.handler.wfile.flush()
            time.sleep(0.05)
        self.drop()

    def flood(self, size):
        """An answer of that many bytes."""
        self.handler.send_response(200)
        self.handler.send_header("Content-Length", str(size))
        self.handler.end_headers()
        for _ in range(size // 2**20):
            self.handler.wfile.write(b" " * 2**20)

    def drop(self):
        """Hangs up."""
        self.handler.close_connection = True
        self.handler.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def hostile_server(answer, listing, certificate=None):
    """A Hostile server. `listing` is what each GET but /health is answered with (a status, or what becomes JSON);
    `certificate` the files of one and of its key, for https."""
    hostile = Hostile(answer, listing)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20

        def setup(self):
            super().setup()
            hostile.connections += 1

        def do_POST(self):
            try:
                hostile.respond(self)
            except OSError:  # the client has gone, as it should where the answer takes too long
                self.close_connection = True

        def do_GET(self):
            hostile.gets.append(self.path)
            content = hostile.listing
            if self.path == "/health":
                content = {"status": "ok"} if hostile.well else 503
            status, body = (content, b"{}") if isinstance(content, int) else (200, json.dumps(content).encode())
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    hostile.url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
    hostile.stop = lambda: (server.shutdown(), server.server_close())
    try:
        yield hostile
    finally:
        hostile.stop()


@contextmanager
def silent_server():
    """The address of a server that accepts connections and never reads from them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
