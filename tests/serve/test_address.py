"""Addresses and tokens: what is taken, and what the messages say about the rest."""

from __future__ import annotations

import socket

import pytest

from dvt_edge.errors import ConfigError
from dvt_edge.serve.address import (
    choose_token,
    is_loopback,
    open_listener,
    page_url,
    parse_address,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("[::1]:8080", ("::1", 8080)),
        ("localhost:0", ("localhost", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "8080", ":8080", "127.0.0.1", "::1:8080", "a:b", "1.2.3.4:80:80", "http://a:80", "a b:80",
     "127.0.0.1:", "[::1]", "127.0.0.1:999999", "user@host:80"],
)  # fmt: skip
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"takes HOST:PORT, such as 127\.0\.0\.1:8080"):
        parse_address(text)


def test_ports_end() -> None:
    with pytest.raises(ConfigError, match="ports end at 65535"):
        parse_address("127.0.0.1:70000")


def test_port_in_use() -> None:
    """The message names another one."""
    with open_listener("127.0.0.1:0") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} is in use .*, such as {port + 1}"):
            open_listener(f"127.0.0.1:{port}")
    open_listener(f"127.0.0.1:{port}").close()


def test_not_an_address_of_this_machine() -> None:
    with pytest.raises(ConfigError, match=r"no address 192\.0\.2\.1; give one of its own"):
        open_listener("192.0.2.1:0")


def test_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **names: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(ConfigError, match="no address is known for 'nowhere'"):
        open_listener("nowhere:80")


@pytest.mark.parametrize(
    ("address", "loopback"), [("127.0.0.1:0", True), ("127.8.0.9:0", True), ("0.0.0.0:0", False)]
)
def test_loopback(address: str, loopback: bool) -> None:
    with open_listener(address) as listener:
        assert is_loopback(listener) == loopback


def test_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given, of the environment, made; on loopback none is made."""
    monkeypatch.delenv("DVT_EDGE_TOKEN", raising=False)
    assert choose_token(None, loopback=True) is None
    made = {choose_token(None, loopback=False) for _ in range(20)}
    assert len(made) == 20
    assert all(token and len(token) >= 32 for token in made)
    assert all(choose_token(token, loopback=False) == token for token in made)
    monkeypatch.setenv("DVT_EDGE_TOKEN", "of-the-environment")
    assert choose_token(None, loopback=True) == "of-the-environment"
    assert choose_token("on-the-command-line", loopback=True) == "on-the-command-line"


@pytest.mark.parametrize(
    "token", ["", "short", "a" * 129, "with space in it!", "ümlaute" * 4, "a;b" * 9]
)
def test_tokens_that_are_refused(token: str) -> None:
    with pytest.raises(ConfigError, match="16 to 128 letters"):
        choose_token(token, loopback=True)


def test_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all addresses, the machine's name stands in."""
    monkeypatch.setattr(socket, "gethostname", lambda: "jetson")
    with open_listener("127.0.0.1:0") as listener:
        port = listener.getsockname()[1]
        assert page_url(listener, None) == f"http://127.0.0.1:{port}/"
    with open_listener("0.0.0.0:0") as listener:
        port = listener.getsockname()[1]
        assert page_url(listener, "abc") == f"http://jetson:{port}/?token=abc"
