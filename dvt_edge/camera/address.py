"""From a URI to what has to be opened, and to what may be shown of it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args
from urllib.parse import parse_qsl, quote, unquote

from dvt_edge.errors import ConfigError
from dvt_edge.files.one_line import one_line

Kind = Literal["v4l2", "csi", "rtsp", "http", "file", "images", "gst", "test"]
_SCHEMES: dict[str, Kind] = {name: name for name in get_args(Kind)} | {
    "rtsps": "rtsp",
    "https": "http",
}
_OPTIONS: dict[Kind, tuple[str, ...]] = {
    "v4l2": ("size", "fps", "format"),
    "csi": ("size", "fps"),
    "file": ("loop",),
    "images": ("fps", "loop"),
    "test": ("size", "fps", "stamp"),
}
_SECRET_KEY = re.compile(r"user|usr|login|pass|pwd|psw|pw$|token|key|secret|auth|sig|session", re.I)
HIDDEN = "***"
MOST_CHARACTERS = 4096
"""Of a URI; hiding credentials takes time that grows with the square."""


@dataclass(frozen=True)
class Address:
    """What to open. ``str`` shows no credentials."""

    kind: Kind
    target: str = field(repr=False)
    """Path of a device, file or folder (empty: the demo's scenes); number of a CSI sensor; URL
    whose user and password are percent-encoded; pipeline."""
    shown: str
    """The URI without credentials, for people."""
    size: tuple[int, int] | None = None
    """Width and height in pixels that are asked for."""
    fps: float | None = None
    format: str | None = None
    loop: bool = False
    stamp: bool = False

    def __str__(self) -> str:
        return self.shown

    @property
    def is_camera(self) -> bool:
        """Whether pictures are lost where nobody takes them, and come back after a failure."""
        return self.kind not in ("file", "images")


def parse(uri: str, environment: Mapping[str, str] | None = None) -> Address:
    """What ``uri`` means. ``${NAME}`` is read from the environment: between ``//`` and the ``@``
    before the host it is taken literally, whatever it holds.

    Raises :class:`~dvt_edge.errors.ConfigError`, which holds no credentials.
    """
    environment = os.environ if environment is None else environment
    _check_text(uri)
    if re.fullmatch(r"\$\{\w+\}", uri):  # all of it; it may hold variables itself
        uri = _expanded(uri, environment)
        _check_text(uri)
    scheme, rest = _split_scheme(uri)
    if scheme is None:
        return _bare(_expanded(uri, environment))
    kind = _SCHEMES.get(scheme)
    if kind is None:
        near = difflib.get_close_matches(scheme, _SCHEMES, 1)
        raise ConfigError(
            f"unknown source {scheme}://; one of {', '.join(f'{name}://' for name in _SCHEMES)}"
            + (f", perhaps {near[0]}://" if near else "")
        )
    if kind in ("rtsp", "http"):
        target = _url(scheme, rest, environment)
        if re.match(r"\w+://(?:[^@/]*@)?(?:[:/?#]|$)", target):
            raise ConfigError(f"{redacted(uri)} names no host; expected {scheme}://host/path")
        return Address(kind, target, redacted(uri))
    rest = _expanded(rest, environment)
    if kind == "gst":
        if not rest.strip():
            raise ConfigError("gst:// is followed by a pipeline, such as gst://videotestsrc")
        return Address(kind, rest, redacted(uri))
    path, _, query = rest.partition("?")
    return _local(kind, unquote(path), query, redacted(uri))


def redacted(uri: str) -> str:
    """``uri`` in one line, without user, password and what its query calls such; never raises."""
    return one_line(_without_credentials(uri))


def _without_credentials(uri: str) -> str:
    scheme, rest = _split_scheme(uri)
    if scheme == "gst":
        text = re.sub(r"(\w+://)[^\s!]*@", rf"\1{HIDDEN}@", rest)
        text = re.sub(r"""([\w-]+)=("[^"]*"|'[^']*'|[^\s!]+)""", _hide_property, text)
        return f"gst://{text}"
    if scheme is None:
        return uri
    if _SCHEMES.get(scheme, "http") in ("rtsp", "http"):  # unknown ones may hold a password, too
        # Where an @ may belong to the password or to the path, more is hidden than need be.
        rest = re.sub(r"^.*@", f"{HIDDEN}@", rest, flags=re.DOTALL)
        head, mark, query = rest.partition("?")
        rest = head + mark + re.sub(r"([^=&#;]+)=([^&#;]*)", _hide_property, query)
    return f"{scheme}://{rest}"


def scrubbed(text: str, address: Address) -> str:
    """``text``, such as a library's message, without the address's credentials."""
    if address.kind in ("rtsp", "http"):
        text = text.replace(address.target, address.shown)
    user, _ = _split_user(address.target.partition("://")[2])
    words = [] if user is None else [user, *user.split(":", 1)]
    for word in sorted({w for given in words for w in (given, unquote(given))}, key=len)[::-1]:
        if len(word) > 2:
            text = text.replace(word, HIDDEN)
    return re.sub(r"(\w+://)[^\s/@]+@", rf"\1{HIDDEN}@", text)


def _check_text(uri: str) -> None:
    """Whether ``uri`` can be a path or an argument of a system call."""
    if len(uri) > MOST_CHARACTERS:
        raise ConfigError(
            f"the source's URI has {len(uri)} characters, the most is {MOST_CHARACTERS}; shorten it"
        )
    try:
        os.fsencode(uri)
    except UnicodeEncodeError:
        raise ConfigError(
            "the source's URI holds characters that no text has; remove them"
        ) from None
    if "\0" in uri:
        raise ConfigError("the source's URI holds a NUL character; remove it")


def _hide_property(found: re.Match[str]) -> str:
    return f"{found[1]}={HIDDEN}" if _SECRET_KEY.search(found[1]) else found[0]


def _split_scheme(uri: str) -> tuple[str | None, str]:
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    return (found[1].lower(), uri[found.end() :]) if found else (None, uri)


def _split_user(rest: str) -> tuple[str | None, str]:
    """User and password, as written, and what follows their ``@``.

    They may hold ``@``, and ``/``, ``?`` and ``#`` as long as what stands before those cannot be
    meant as a host with its port.
    """
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        user, _, host = authority.rpartition("@")
        return user, host + rest[len(authority) :]
    is_host = re.fullmatch(r"(\[[0-9A-Fa-f:.]*\]|[^:]*)(:\d*|:?\$\{\w+\})?", authority)
    if not is_host and "@" in rest:
        user, _, after = rest.rpartition("@")
        return user, after
    return None, rest


def _url(scheme: str, rest: str, environment: Mapping[str, str]) -> str:
    """With user and password percent-encoded, as FFmpeg takes them."""
    user, after = _split_user(rest)
    if user is None:  # a variable may hold user, password and host
        user, after = _split_user(_expanded(rest, environment))
        if user is None:
            return f"{scheme}://{after}"
        parts = [_quoted(unquote(part)) for part in user.split(":", 1)]
    else:
        after = _expanded(after, environment)
        parts = [_encoded(part, environment) for part in user.split(":", 1)]
    return f"{scheme}://{':'.join(parts)}@{after}"


def _encoded(part: str, environment: Mapping[str, str]) -> str:
    """Percent-encoded, whether it was or not; values of variables are taken as they are."""
    pieces = re.split(r"(\$\{\w+\})", part)
    return "".join(
        _quoted(_expanded(piece, environment) if at % 2 else unquote(piece))
        for at, piece in enumerate(pieces)
    )


def _quoted(text: str) -> str:
    """Percent-encoded; bytes of a command line that are not UTF-8 are kept."""
    return quote(text, safe="", errors="surrogateescape")


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        try:
            return environment[found[1]]
        except KeyError:
            raise ConfigError(
                f"the environment has no {found[1]}, which the source's URI names; set it with "
                f"export {found[1]}=..."
            ) from None

    return re.sub(r"\$\{(\w+)\}", value, text)


def _bare(text: str) -> Address:
    """A number or a path."""
    if text.isdecimal():
        device = f"/dev/video{_number(text)}"
        return Address("v4l2", device, f"v4l2://{device}")
    if not text.strip():
        raise ConfigError("the source is empty; expected a URI such as v4l2:///dev/video0")
    shown = one_line(text)
    path, _, query = (text, "", "") if os.path.exists(text) else text.partition("?")
    if re.match(r"/dev/video\d", path):
        return _local("v4l2", path, query, shown)
    return _local("images" if os.path.isdir(path) else "file", path, query, shown)


def _local(kind: Kind, path: str, query: str, shown: str) -> Address:
    """A device, sensor, file or folder with our own options."""
    if "\0" in path:
        raise ConfigError(f"{shown}: a path cannot hold a NUL character; remove it")
    if kind == "v4l2":
        path = f"/dev/video{_number(path)}" if path.isdecimal() else path
        if not path.startswith("/"):
            raise ConfigError(f"{shown} names no device; expected v4l2:///dev/video0")
    if kind == "csi":
        path = path.strip("/") or "0"
        if not path.isdecimal():
            raise ConfigError(f"{shown} names no sensor; expected csi://0")
    if kind in ("file", "images", "test") and path:
        path = os.path.abspath(os.path.expanduser(path))
    if kind in ("file", "images") and not path:
        raise ConfigError(f"{shown} names no path; expected {kind}:///path")
    values: dict[str, object] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS[kind]:
            raise ConfigError(
                f"{shown}: unknown option {name!r}; {kind}:// takes {', '.join(_OPTIONS[kind])}"
            )
        values[name] = _option(shown, name, text)
    return Address(kind, path, shown, **values)  # type: ignore[arg-type]


def _number(digits: str) -> int:
    """Of a device."""
    if len(digits) > 9:
        raise ConfigError("no device has a number of so many digits; expected 0, for /dev/video0")
    return int(digits)


def _option(shown: str, name: str, text: str) -> object:
    read, expected = _READ[name]
    try:
        return read(text)
    except (ValueError, KeyError):
        raise ConfigError(f"{shown}: {name} is {expected}, found {text!r}") from None


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not found or not int(found[1]) or not int(found[2]):
        raise ValueError(text)
    return int(found[1]), int(found[2])


def _fps(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1000:
        raise ValueError(text)
    return value


def _word(text: str) -> str:
    if not re.fullmatch(r"\w+", text):
        raise ValueError(text)
    return text


_SWITCH = {"": True, "1": True, "true": True, "0": False, "false": False}
_READ: dict[str, tuple[Callable[[str], object], str]] = {
    "size": (_size, "width x height, such as 640x480"),
    "fps": (_fps, "a number of frames per second up to 1000"),
    "format": (_word, "what FFmpeg calls it, such as mjpeg or yuyv422"),
    "loop": (_SWITCH.__getitem__, "1 or 0"),
    "stamp": (_SWITCH.__getitem__, "1 or 0"),
}
