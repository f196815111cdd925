"""Where the page is served, and the token that keeps others out."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import secrets
import socket

from dvt_edge.errors import ConfigError

TOKEN_VARIABLE = "DVT_EDGE_TOKEN"
TOKEN_BYTES = 24
"""Random bytes of a token that is made here."""
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,128}")
"""What a token may be: too long to guess, and the same in an address, a header and a cookie."""
_EXAMPLE = "127.0.0.1:8080"


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[IPv6]:PORT``; port 0 takes any free one.

    Raises :class:`~dvt_edge.errors.ConfigError` for anything else.
    """
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]/@\s]+)):([0-9]{1,5})", text)
    if found is None:
        raise ConfigError(
            f"--serve takes HOST:PORT, such as {_EXAMPLE}, or [::1]:8080, found '{text}'"
        )
    port = int(found[3])
    if port > 65535:
        raise ConfigError(f"--serve {text}: ports end at 65535; choose another one, such as 8080")
    return found[1] or found[2], port


def open_listener(text: str) -> socket.socket:
    """A socket that listens on the address ``text``; the port is taken from now on.

    Raises :class:`~dvt_edge.errors.ConfigError` where it cannot be had.
    """
    host, port = parse_address(text)
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise ConfigError(
            f"--serve {text}: no address is known for '{host}'; give an IP address, such as "
            f"{_EXAMPLE}"
        ) from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(128)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigError(f"--serve {text}: {_why(error, host, port)}") from None
    return listener


def _why(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        other = port + 1 if port < 65535 else port - 1
        return (
            f"port {port} is in use by another program; choose another one, such as {other}, or 0 "
            "for any that is free"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return f"this machine has no address {host}; give one of its own, or {_EXAMPLE}"
    if error.errno == errno.EACCES:
        return f"port {port} may not be used; choose one from 1024 on"
    return f"{error.strerror or error}; choose another address, such as {_EXAMPLE}"


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine reaches ``listener``."""
    host = str(listener.getsockname()[0]).partition("%")[0]
    return ipaddress.ip_address(host).is_loopback


def choose_token(given: str | None, *, loopback: bool) -> str | None:
    """``given``, or that of the environment, or a new one; None on loopback without either.

    Raises :class:`~dvt_edge.errors.ConfigError` for one that is easy to guess or cannot be sent.
    """
    token = given if given is not None else os.environ.get(TOKEN_VARIABLE)
    if token is None:
        return None if loopback else secrets.token_urlsafe(TOKEN_BYTES)
    if not _TOKEN.fullmatch(token):
        raise ConfigError(
            "a token has 16 to 128 letters, digits and . _ ~ -; choose another one for "
            f"--serve-token or {TOKEN_VARIABLE}, or leave it out and one is made"
        )
    return token


def page_url(listener: socket.socket, token: str | None) -> str:
    """What to open in a browser; for all addresses, this machine's name stands in."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(str(host).partition("%")[0])
    name = socket.gethostname() if address.is_unspecified else str(address)
    if ":" in name:
        name = f"[{name}]"
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")
