"""What is fuzzed: functions that take bytes as a stranger may have written them.

Each lets only the project's own errors pass as an answer. Anything else that it raises is a
finding, and so is a file that it opens outside of the folder that it was given.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote

import numpy as np

from dvt_edge.errors import DvtEdgeError

tempfile.gettempdir()  # tries to write there once; libraries ask for it
ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "fuzz" / "corpus"
_BUNDLE = CORPUS / "bundle"
"""A whole bundle of one made-up stage, around the file that is fuzzed."""

Check = Callable[[bytes], None]


class Wrong(AssertionError):  # noqa: N818  # a finding, and no error of the project's
    """Something was let through that should not have been."""


@dataclass(frozen=True)
class Target:
    """One kind of input."""

    name: str
    make: Callable[[Path], Check]
    """Given an empty folder of its own, what is called with each input."""
    modules: tuple[str, ...] = ("dvt_edge",)
    """Prefixes of the modules whose branches guide the fuzzer."""
    longest: int = 4096
    """Bytes of an input."""

    def open(self, folder: Path) -> Check:
        """What is called with each input; ``folder`` is an empty one of its own.

        It returns where the input is read or refused, and raises where it is a finding.
        """
        check = self.make(folder)
        opened = _Opened(folder)

        def judged(data: bytes) -> None:
            with opened:
                try:
                    check(data)
                except DvtEdgeError as error:
                    if not str(error) or "\n" in str(error):
                        raise Wrong(f"not one line: {str(error)!r}") from error

        return judged

    def seeds(self) -> list[Path]:
        """Its corpus in the repository."""
        return sorted((CORPUS / self.name).iterdir())


class _Opened:
    """Raises :class:`Wrong` where a file outside of ``folder`` was opened meanwhile.

    Python's own files do not count, which imports and messages need.
    """

    _current: _Opened | None = None
    _listening = False

    def __init__(self, folder: Path) -> None:
        own = (folder, sys.prefix, sys.base_prefix, ROOT / "dvt_edge", ROOT / "runtime")
        roots = {os.path.realpath(root) for root in own} | {str(root) for root in own}
        self._roots = (*roots, *(os.path.realpath(path) for path in sys.path if path))
        self._outside: list[str] = []
        if not _Opened._listening:  # a hook stays as long as the process
            _Opened._listening = True
            sys.addaudithook(_Opened._hear)

    @staticmethod
    def _hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and _Opened._current is not None:
            _Opened._current._note(arguments[0])

    def _note(self, path: object) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            name = os.path.abspath(os.fsdecode(path))
            if not name.startswith(self._roots) and not name.startswith(("/proc/", "/sys/")):
                self._outside.append(name)

    def __enter__(self) -> None:
        self._outside.clear()
        _Opened._current = self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        _Opened._current = None
        if self._outside and kind is None:
            raise Wrong(f"opened {self._outside[0]}")


def _profile(folder: Path) -> Check:
    from dvt_edge.profile import Profile

    return lambda data: _discard(Profile.from_yaml(_written(folder / "profile.yaml", data)))


def _training(folder: Path) -> Check:
    from dvt_edge.models.training_config import TrainingConfig

    return lambda data: _discard(TrainingConfig.from_yaml(_written(folder / "train.yaml", data)))


def _manifest(folder: Path) -> Check:
    from dvt_edge.bundle.bundle import Bundle
    from dvt_edge.bundle.manifest import MANIFEST, check_handed_on

    shutil.copytree(_BUNDLE, folder, dirs_exist_ok=True)

    def check(data: bytes) -> None:
        _written(folder / MANIFEST, data)
        manifest = Bundle(folder).manifest
        check_handed_on(manifest.stages)
        _discard(manifest.bytes_resident, manifest.content_hash, manifest.measured_shape)

    return check


def _records(folder: Path) -> Check:
    from dvt_edge.bundle.bundle import Bundle
    from dvt_edge.bundle.manifest import RECORDS

    shutil.copytree(_BUNDLE, folder, dirs_exist_ok=True)
    bundle = Bundle(folder)

    def check(data: bytes) -> None:
        _written(folder / RECORDS, data)
        records = bundle.records()
        if not -0.01 < records.confidence.min() <= records.confidence.max() < 1.01:
            raise Wrong("a confidence that is no probability")
        with np.errstate(all="raise", under="ignore"):
            _discard(records.accuracy, records.probability_right, records.exits_taken([0.5]))

    return check


def _safetensors(folder: Path) -> Check:
    from dvt_edge.models.cascade import Cascade
    from dvt_edge.models.checkpoint import read_metadata
    from dvt_edge.models.foreign import import_cascade

    def check(data: bytes) -> None:
        path = _written(folder / "model.safetensors", data)
        for read in (read_metadata, Cascade.load, import_cascade):
            try:
                read(path)
            except DvtEdgeError as error:
                if "\n" in str(error):
                    raise Wrong(f"not one line: {str(error)!r}") from error

    return check


def _checkpoint(folder: Path) -> Check:
    from dvt_edge.models.foreign import import_cascade

    return lambda data: _discard(import_cascade(_written(folder / "model.pth", data)))


def _onnx(folder: Path) -> Check:
    import onnx

    from dvt_edge.bundle.graph_check import check_graph

    def check(data: bytes) -> None:
        _written(folder / "stage1.onnx", data)
        check_graph(folder, "stage1.onnx")
        try:
            model = onnx.load_model_from_string(data)
        except Exception:  # protobuf reads less than what passes
            return
        attributes = [attribute for node in model.graph.node for attribute in node.attribute]
        tensors = [*model.graph.initializer, *(attribute.t for attribute in attributes)]
        if any(tensor.external_data or tensor.data_location for tensor in tensors):
            raise Wrong("weights in another file")
        subgraphs = [attribute for attribute in attributes if attribute.HasField("g")]
        if model.functions or model.training_info or subgraphs:
            raise Wrong("functions or subgraphs")

    return check


def _image(folder: Path) -> Check:
    from dvt_edge.files.datasets import load_image

    def check(data: bytes) -> None:
        pixels = load_image(_written(folder / "image", data))
        if pixels.dtype != np.uint8 or pixels.shape[2:] not in ((), (3,)) or not pixels.size:
            raise Wrong(f"an image {pixels.dtype} {pixels.shape}")

    return check


_DTYPES = (np.uint8, np.uint8, np.uint8, np.uint8, np.int8, np.float32, np.uint16, np.bool_)


def _frame(folder: Path) -> Check:
    """Eleven bytes say what the frame is like, the rest are its pixels, again and again."""
    from dvt_edge.profile import ColorOrder, InputConfig
    from dvt_edge.runtime.preprocess import Preprocessor, cut_box

    def config(channels: int, bicubic: bool) -> InputConfig:
        return InputConfig(
            resize=20,
            crop=16,
            mean=(0.5,) * channels,
            std=(0.25,) * channels,
            color_order="gray" if channels == 1 else "bgr",
            interpolation="bicubic" if bicubic else "bilinear",
        )

    pairs = [
        [Preprocessor(config(channels, bicubic), native=native) for native in (True, False)]
        for channels in (1, 3)
        for bicubic in (False, True)
    ]
    orders = get_args(ColorOrder)

    def check(data: bytes) -> None:
        head = data[:11].ljust(11, b"\0")
        kind, order, sides = head[0], orders[head[1] % len(orders)], head[2:5]
        shape = [sides[0] * (1 + head[5] // 200 * 40), *sides[1:]][: kind % 4]
        dtype = np.dtype(_DTYPES[kind // 4 % len(_DTYPES)])
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if count > 1 << 20:
            return
        filled = np.resize(np.frombuffer(data[11:] or b"\x80", np.uint8), count)
        frame = filled.view(dtype).reshape(shape)
        if kind & 128 and shape:
            frame = frame[::-1]
        pair = pairs[head[6] % 4]
        outs = [np.zeros(pair[0].shape, np.float32) for _ in pair]
        for preprocess, out in zip(pair, outs, strict=True):
            preprocess(frame, out, order)
        thin = max(frame.shape[:2]) > 7 * min(frame.shape[:2])
        if not thin and not np.array_equal(outs[0], outs[1]):
            raise Wrong(f"native code and Pillow differ for {order} {frame.shape}")
        cut = cut_box(frame, tuple(head[7:11]), order)
        if not cut.size:
            raise Wrong(f"an empty box of {frame.shape}")

    return check


def _uri(folder: Path) -> Check:
    from dvt_edge.camera.address import parse, redacted, scrubbed

    environment = {"PASSWORD": "p@ss:/?#word", "CAMERA": "rtsp://user:secret@host/stream"}

    def check(data: bytes) -> None:
        uri = data.decode("utf-8", "surrogateescape")
        redacted(uri)
        address = parse(uri, environment)
        scrubbed(f"cannot open {address.target}", address)
        os.fsencode(address.target)
        if "p@ss:/?#word" in str(address):
            raise Wrong("the password is shown")

    return check


def _message(folder: Path) -> Check:
    from dvt_edge.serve.viewer import Leave, parse

    def check(data: bytes) -> None:
        try:
            message = parse(data.decode("utf-8", "replace"))
        except Leave:
            return
        if message["type"] not in ("next", "budget", "source"):
            raise Wrong(f"understood as {message}")

    return check


def _http(folder: Path) -> Check:
    """A request as h11 reads it, through the guard to the routes; with and without a token."""
    import h11

    from dvt_edge.serve.guard import HEADERS, Rules
    from dvt_edge.serve.hub import Hub
    from dvt_edge.serve.routes import make_app, make_routes
    from dvt_edge.serve.seconds import Seconds

    async def serve(socket: Any) -> None:
        await socket.accept()
        await socket.close()

    routes = make_routes(Hub(Seconds(3, lambda: None)), lambda: (b"", "text/plain"), serve)
    apps = [make_app(routes, Rules(token, 8080)) for token in (None, "correct-horse")]

    async def ask(app: Any, scope: dict[str, Any]) -> list[Any]:
        sent: list[Any] = []
        first = "websocket.connect" if scope["type"] == "websocket" else "http.request"

        async def receive() -> dict[str, Any]:
            return {"type": first, "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)
        return sent

    def check(data: bytes) -> None:
        connection = h11.Connection(h11.SERVER)
        try:
            connection.receive_data(data)
            request = connection.next_event()
        except h11.RemoteProtocolError:
            return
        if not isinstance(request, h11.Request):
            return
        headers = [(name.lower(), value) for name, value in request.headers]
        raw_path, _, query = request.target.partition(b"?")
        upgrade = (b"upgrade", b"websocket") in headers
        scope: dict[str, Any] = {
            "type": "websocket" if upgrade else "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "ws" if upgrade else "http",
            "method": request.method.decode("ascii"),
            "path": unquote(raw_path.decode("ascii")),
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8080),
            "subprotocols": [],
            "state": {},
            "extensions": {"websocket.http.response": {}},
        }
        for app in apps:
            sent = asyncio.run(ask(app, dict(scope)))
            starts = [message for message in sent if message["type"].endswith("response.start")]
            for start in starts:
                names = {name.decode().lower() for name, _ in start["headers"]}
                if missing := {name.lower() for name in HEADERS} - names:
                    raise Wrong(f"an answer without {missing}")
                if start["status"] >= 500 and start["status"] != 503:
                    raise Wrong(f"status {start['status']}")
            if not sent:
                raise Wrong("no answer")

    return check


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _discard(*values: object) -> None:
    """Of properties that only have to be computable."""


TARGETS: Sequence[Target] = (
    Target("profile", _profile, ("dvt_edge", "yaml")),
    Target("training", _training, ("dvt_edge", "yaml")),
    Target("manifest", _manifest),
    Target("records", _records, ("dvt_edge", "zipfile")),
    Target("safetensors", _safetensors, longest=16384),
    Target("checkpoint", _checkpoint, longest=16384),
    Target("onnx", _onnx),
    Target("image", _image, ("dvt_edge", "PIL"), 16384),
    Target("frame", _frame),
    Target("uri", _uri),
    Target("message", _message, ("dvt_edge", "json")),
    Target("http", _http, ("dvt_edge", "h11", "starlette")),
)
