"""What an HTTP status says about asking again: never, after a failure, or once the server has time."""

import contextlib
import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_REST = 60.0
"""seconds: a server that asks for more is asked again all the same"""

_BUSY = (425, 429, 503, 529)  # 529: "overloaded", of hosted services
_PASSING = (408, *_BUSY)
_LONGEST_ERROR = 10_000
_NUMBER = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,12})?")


def is_passing(status: int) -> bool:
    """Whether another attempt may get another answer: 408, 425, 429 and all of 5xx."""
    return status in _PASSING or 500 <= status < 600


def status_of(status: int, body: bytes) -> int:
    """The status of an answer; of one that says 200 and is an error with a status of its own, as routers of hosted
    models send where the model behind them refuses, the latter."""
    if status != 200 or len(body) > _LONGEST_ERROR or b'"error"' not in body:
        return status
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(body)
        error = found.get("error") if isinstance(found, dict) else None
        code = error.get("code") if isinstance(error, dict) else None
        return code if isinstance(code, int) and 400 <= code < 600 else status
    return status


def is_busy(status: int) -> bool:
    """Whether the server is well and has no time now."""
    return status in _BUSY


def rest_asked_for(headers: Mapping[str, str]) -> float | None:
    """Seconds for which a server asks to be left alone, at most LONGEST_REST; None where it says nothing of use.

    Read are retry-after-ms and x-ms-retry-after-ms, then Retry-After in seconds or as an HTTP date, by the server's own
    clock if it sends one.
    """
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        if (seconds := _seconds(headers.get(name, ""), 1000.0)) is not None:
            return seconds
    text = headers.get("retry-after", "")
    if (seconds := _seconds(text, 1.0)) is not None or not text:
        return seconds
    when = _date(text)
    now = _date(headers.get("date", "")) or datetime.now(UTC)
    return None if when is None else _usable((when - now).total_seconds())


def _seconds(text: str, parts: float) -> float | None:
    return _usable(float(text.strip()) / parts) if _NUMBER.fullmatch(text.strip()) else None


def _usable(seconds: float) -> float | None:
    return min(seconds, LONGEST_REST) if seconds > 0 and math.isfinite(seconds) else None


def _date(text: str) -> datetime | None:
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        date = parsedate_to_datetime(text)
        return date if date.tzinfo else date.replace(tzinfo=UTC)
    return None
