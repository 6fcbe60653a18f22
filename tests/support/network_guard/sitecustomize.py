"""Imported by each Python process that finds this folder in PYTHONPATH: fails whatever reaches beyond this machine.

Look-ups of names and connections to addresses, of any library and thread: Python tells of them before they happen
(https://docs.python.org/3/library/audit_events.html). A library may swallow the error, so each is also noted in the
file NETWORK_GUARD_LOG.
"""

import ipaddress
import os
import sys
import traceback

_HOST_OF = {
    "socket.getaddrinfo": lambda arguments: arguments[0],
    "socket.gethostbyname": lambda arguments: arguments[0],
    "socket.gethostbyaddr": lambda arguments: arguments[0],
    "socket.getnameinfo": lambda arguments: arguments[0][0],
    "socket.connect": lambda arguments: arguments[1],
    "socket.sendto": lambda arguments: arguments[1],
    "socket.sendmsg": lambda arguments: arguments[1],
}


def _stays_here(host: object) -> bool:
    if isinstance(host, tuple):
        host = host[0]
    elif isinstance(host, str | bytes) and os.sep in os.fsdecode(host):
        return True  # a Unix socket
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(os.fsdecode(host)).is_loopback
    except ValueError:
        return False


def _watch(event: str, arguments: tuple) -> None:
    if event in _HOST_OF and not _stays_here(host := _HOST_OF[event](arguments)):
        with open(os.environ["NETWORK_GUARD_LOG"], "a", encoding="utf-8") as log:
            log.write(f"{event} {host!r}\n{''.join(traceback.format_stack())}\n")
        raise PermissionError(f"{event} {host!r}: beyond this machine")


if "NETWORK_GUARD_LOG" in os.environ:
    sys.addaudithook(_watch)
