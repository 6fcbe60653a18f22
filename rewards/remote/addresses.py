"""Addresses of servers: which can be asked, and which never leave this machine."""

import ipaddress
import socket

import httpx2

from uniar.errors import UserError


def checked_url(url: str) -> str:
    """The URL without a slash at its end. Raises UserError for one that no request can be sent to."""
    if "@" in str(url).partition("://")[2].partition("/")[0]:
        raise UserError("url has a user or password in it, which logs would show; use a token from the environment.")
    try:
        parsed = httpx2.URL(url)
        host = parsed.host.encode("idna")
    except (httpx2.InvalidURL, TypeError, UnicodeError) as error:
        raise UserError(f"url {url!r} is not a URL: {error}.") from error
    if parsed.scheme not in ("http", "https") or not host or parsed.query or parsed.fragment:
        raise UserError(f"url {url!r} is not a server; http://host:port or https://host/path is needed.")
    if b"%" in host:
        raise UserError(f"url {url!r} has the host {parsed.host!r}, which is not a name or an address.")
    if parsed.port is not None and not 1 <= parsed.port <= 65535:
        raise UserError(f"url {url!r} has port {parsed.port}; a port is a number from 1 to 65535.")
    return str(url).rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether only this machine answers at the address, which may be in brackets. A name other than localhost may mean
    anything: False."""
    host = host.strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _numeric(host)
    mapped = getattr(address, "ipv4_mapped", None)
    return address is not None and (mapped or address).is_loopback


def stays_here(host: str) -> bool:
    """Whether a request to the address stays on this machine: a loopback address, or the one that stands for all."""
    address = _numeric(host.strip("[]"))
    return is_loopback(host) or (address is not None and address.is_unspecified)


def _numeric(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))  # 127.1 and the like, as connecting reads them
    except (OSError, UnicodeError):
        return None
