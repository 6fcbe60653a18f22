"""What a server answered, or kept from answering, in one line."""

import contextlib
import json
from collections.abc import Mapping

import httpx2

_MOST_ANSWER_BYTES = 32 * 2**20


class ServerError(Exception):
    """No server answered as it should. `status` is the HTTP status that was final, None where there was none."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


async def read_body(response: httpx2.Response, url: str) -> bytes:
    """All of an answer. Raises ServerError for one that is too large."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > _MOST_ANSWER_BYTES:
            raise ServerError(f"{url} answered with more than {_MOST_ANSWER_BYTES} bytes")
    return bytes(body)


def described(url: str, response: httpx2.Response, body: bytes) -> str:
    """What a server said instead of 200, in one line: our own servers' sentence, or the beginning of whatever it is."""
    text = body.decode("utf-8", "replace")
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(text)
        error = content.get("error") if isinstance(content, Mapping) else None
        error = error.get("message") if isinstance(error, Mapping) else error  # as OpenAI's format has it
        text = error if isinstance(error, str) else text
    said = " ".join(text.split())
    said = f": {said if len(said) <= 300 else said[:297] + '...'}" if said else ""
    return f"{url} answered {response.status_code}{said}".rstrip(".")


def reason(error: Exception) -> str:
    """What kept a request from being answered, to stand behind a URL."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    said = str(error).rstrip(".") or type(error).__name__
    if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
        return "did not answer in time"
    if isinstance(error, httpx2.RequestError) and not isinstance(error, httpx2.ConnectTimeout | httpx2.ConnectError):
        return f"broke the connection off ({said})"
    return f"cannot be reached ({said})"
