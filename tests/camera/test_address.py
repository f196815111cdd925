"""URIs: what they mean, and what is shown of them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvt_edge.camera import redacted
from dvt_edge.camera.address import Address, parse, scrubbed
from dvt_edge.errors import ConfigError


@pytest.mark.parametrize(
    ("uri", "kind", "target"),
    [
        ("0", "v4l2", "/dev/video0"),
        ("v4l2:///dev/video2", "v4l2", "/dev/video2"),
        ("v4l2://1", "v4l2", "/dev/video1"),
        ("v4l2:///dev/v4l/by-id/usb-cam?fps=15", "v4l2", "/dev/v4l/by-id/usb-cam"),
        ("/dev/video3", "v4l2", "/dev/video3"),
        ("csi://0", "csi", "0"),
        ("csi://", "csi", "0"),
        ("rtsp://host/stream", "rtsp", "rtsp://host/stream"),
        ("RTSPS://host:322/a?b=c", "rtsp", "rtsps://host:322/a?b=c"),
        ("http://host/x.mjpg", "http", "http://host/x.mjpg"),
        ("https://host/x", "http", "https://host/x"),
        ("file:///a%20b/clip.mp4", "file", "/a b/clip.mp4"),
        ("/nowhere/clip.mp4?loop=1", "file", "/nowhere/clip.mp4"),
        ("images:///folder", "images", "/folder"),
        ("gst://videotestsrc ! queue", "gst", "videotestsrc ! queue"),
        ("test://", "test", ""),
        ("test:///folder?fps=5", "test", "/folder"),
    ],
)
def test_kinds(uri: str, kind: str, target: str) -> None:
    address = parse(uri, {})
    assert (address.kind, address.target) == (kind, target)


def test_bare_paths(tmp_path: Path) -> None:
    """A folder holds images; a question mark may belong to a name."""
    odd = tmp_path / "clip?1.mp4"
    odd.touch()
    assert parse(str(tmp_path)).kind == "images"
    assert parse(str(odd)).target == str(odd)
    assert parse(f"{tmp_path}/x.mp4?loop=1").loop


def test_options() -> None:
    address = parse("v4l2:///dev/video0?size=1280x720&fps=29.97&format=mjpeg")
    assert (address.size, address.fps, address.format) == ((1280, 720), 29.97, "mjpeg")
    assert parse("test://?stamp").stamp
    assert not parse("test://?stamp=0").stamp


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "is empty"),
        ("rtps://host/x", "unknown source rtps://.*perhaps rtsps?://"),
        ("ftp://host/x", "unknown source ftp://; one of v4l2://, csi://"),
        ("rtsp:///path", "names no host"),
        ("rtsp://user:secret@/path", "names no host"),
        ("v4l2://camera", "names no device"),
        ("csi://left", "names no sensor"),
        ("file://", "names no path"),
        ("gst:// ", "followed by a pipeline"),
        ("test://?size=640", "size is width x height, such as 640x480, found '640'"),
        ("test://?size=0x480", "size is width"),
        ("test://?fps=0", "fps is a number"),
        ("test://?fps=nan", "fps is a number"),
        ("test://?sise=1x1", "unknown option 'sise'; test:// takes size, fps, stamp"),
        ("file:///x?fps=3", "unknown option 'fps'; file:// takes loop"),
        ("file:///x?loop=yes", "loop is 1 or 0, found 'yes'"),
        ("rtsp://me:${CAMERA_PASSWORD}@host/x", "no CAMERA_PASSWORD.*export CAMERA_PASSWORD="),
    ],
)
def test_what_means_nothing(uri: str, message: str) -> None:
    """Each message says what was expected, and never a password."""
    with pytest.raises(ConfigError, match=message) as caught:
        parse(uri, {})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "user", "password", "rest"),
    [
        ("rtsp://me:p%40ss@host/x", "me", "p@ss", "host/x"),
        ("rtsp://me:p@ss@host/x", "me", "p@ss", "host/x"),
        ("rtsp://me:100%sure@host/x", "me", "100%sure", "host/x"),
        ("rtsp://me:a/b?c#d@host:554/x?y=1", "me", "a/b?c#d", "host:554/x?y=1"),
        ("rtsp://me:a:b@host/x", "me", "a:b", "host/x"),
        ("rtsp://me:@host/x", "me", "", "host/x"),
        ("rtsp://me:${P}@[::1]:554/x", "me", "p@s/s:%41?#", "[::1]:554/x"),
        ("rtsp://${U}:${P}@${H}/x", "a b", "p@s/s:%41?#", "host/x"),
        ("${ALL}", "me", "p@ss", "host/x"),
        ("rtsp://${CREDENTIALS}@host/x", "me:x", None, "host/x"),
        ("rtsp://${TAIL}", "me", "x", "host/x"),
    ],
)
def test_credentials(uri: str, user: str, password: str | None, rest: str) -> None:
    """Whatever they hold, FFmpeg gets them percent-encoded, and nobody sees them."""
    environment = {
        "P": "p@s/s:%41?#",
        "U": "a b",
        "H": "host",
        "ALL": "rtsp://me:p@ss@host/x",
        "CREDENTIALS": "me:x",
        "TAIL": "me:x@host/x",
    }
    address = parse(uri, environment)
    parts = urlsplit(address.target)
    assert unquote(parts.username or "") == user
    assert (None if parts.password is None else unquote(parts.password)) == password
    assert address.target.rpartition("@")[2] == rest
    if password and "$" not in uri:
        assert password not in str(address)
        assert password not in repr(address)


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_password_from_the_environment(name: str, password: str) -> None:
    """Comes out as it went in."""
    address = parse("rtsp://${N}:${P}@host:554/x", {"N": name, "P": password})
    parts = urlsplit(address.target)
    assert (unquote(parts.username or ""), unquote(parts.password or "")) == (name, password)
    assert (parts.hostname, parts.port, parts.path) == ("host", 554, "/x")


@given(st.text(min_size=4), st.sampled_from(["rtsp", "http", "https", "rtsps", "other"]))
def test_any_password_is_redacted(password: str, scheme: str) -> None:
    """Also one that is written as it is, where it is not known where it ends."""
    uri = f"{scheme}://someone:{password}@camera/stream"
    assert redacted(uri) == f"{scheme}://***@camera/stream"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("rtsp://host/x", "rtsp://host/x"),
        ("http://h/x?user=me&pwd=pw&size=3", "http://h/x?user=***&pwd=***&size=3"),
        ("http://h/x?access_token=abc", "http://h/x?access_token=***"),
        ("rtsp://host/cam@2", "rtsp://***@2"),
        ("/dev/video0", "/dev/video0"),
        ("file:///clip.mp4?loop=1", "file:///clip.mp4?loop=1"),
        (
            'gst://rtspsrc location=rtsp://me:pw@h/x user-pw="a b" ! fakesink',
            "gst://rtspsrc location=rtsp://***@h/x user-pw=*** ! fakesink",
        ),
    ],
)
def test_redacted(uri: str, shown: str) -> None:
    assert redacted(uri) == shown


def test_scrubbed() -> None:
    """Messages of libraries hold no credentials, however they quote them."""
    address = parse("rtsp://admin:${P}@host/x", {"P": "p@ss/word"})
    for text in (
        f"cannot open {address.target}",
        "user admin with p@ss/word",
        "rtsp://admin:p%40ss%2Fword@host/x",
        "via rtsp://other:creds@host",
    ):
        shown = scrubbed(text, address)
        assert not any(word in shown for word in ("word", "admin", "creds")), shown
    assert scrubbed("plain", Address("test", "", "test://")) == "plain"


@pytest.mark.parametrize(
    "uri",
    [
        "9" * 5000,
        "v4l2://" + "9" * 4000,
        "x" * 5000,
        "file://~a%00b",
        "rtsp://a\0b@host",
        "rtsp://\ud800@host",
        "file:///a\nb?foo=1",
        "a\nb?foo=1",
    ],
)
def test_found_by_fuzzing(uri: str) -> None:
    """Refused in one line."""
    with pytest.raises(ConfigError) as error:
        parse(uri)
    assert str(error.value).isprintable()


def test_names_too_long_for_the_file_system() -> None:
    """They are paths nevertheless; opening the source will say so."""
    assert parse("y" * 300).kind == "file"


def test_bytes_of_a_command_line() -> None:
    """That are no UTF-8 stay what they are."""
    assert parse("rtsp://us\udce9r@host").target == "rtsp://us%E9r@host"
    assert str(parse("file:///\udce9.mp4")).isprintable()
