"""Write the corpus: ``python -m fuzz.seeds``. Small inputs that are read, for mutations to start
from; inputs that were found to fail lie beside them, and stay."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.torch
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from dvt_edge.bundle.bundle import write_records
from dvt_edge.bundle.manifest import MANIFEST, RECORDS, SCHEMA_VERSION
from dvt_edge.models.cascade import Cascade
from dvt_edge.models.config import CascadeConfig, StageConfig
from dvt_edge.models.official import official_name
from dvt_edge.policy.records import Records
from fuzz.targets import CORPUS, ROOT

INPUT = {"resize": 8, "crop": 8, "mean": [0.5], "std": [0.25], "color_order": "gray"}


def _put(target: str, name: str, data: bytes | str) -> None:
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


def _graph() -> bytes:
    """A graph with a node, a constant and an attribute."""
    weight = numpy_helper.from_array(np.ones((2, 2), np.float32), "weight")
    nodes = [
        helper.make_node("MatMul", ["image", "weight"], ["product"]),
        helper.make_node("Softmax", ["product"], ["logits"], axis=-1),
    ]
    image, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2])
        for name in ("image", "logits")
    )
    graph = helper.make_graph(nodes, "stage", [image], [logits], [weight])
    opsets = [helper.make_opsetid("", 17)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return data


def _manifest(folder: Path) -> dict[str, Any]:
    tensor = {"name": "image", "shape": ["N", 1, 8, 8], "dtype": "float32"}
    logits = {"name": "logits", "shape": ["N", 2], "dtype": "float32"}
    sums = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("stage1.onnx", RECORDS)
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "build_key": "key",
        "device": "a board",
        "engine": {"backend": "onnxruntime"},
        "input": INPUT,
        "exits": {},
        "budget": {"latency_ms": 2.0},
        "class_names": ["cat", "dog"],
        "frame_shape": [8, 8],
        "stages": [
            {
                "file": "stage1.onnx",
                "inputs": [tensor],
                "outputs": [logits],
                "parameters": 1,
                "macs": 1,
            }
        ],
        "quantization": {
            "precision": "fp32",
            "exits": [{"accuracy_before": 0.5, "accuracy_after": 0.5}],
            "changed_decisions": 0.0,
            "tolerance_points": 1.0,
        },
        "files": sums,
        "versions": {},
    }


def _bundle() -> None:
    folder = CORPUS / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    _put("bundle", "stage1.onnx", _graph())
    confidence = np.array([[0.5], [0.9], [0.2], [0.8]], np.float32)
    prediction = np.array([[1], [0], [1], [1]], np.int32)
    label, group = np.array([1, 1, 0, 1], np.int32), np.array([0, 0, 1, 1], np.int32)
    write_records(folder / RECORDS, Records(confidence, prediction, label, group))
    text = json.dumps(_manifest(folder), indent=1)
    _put("bundle", MANIFEST, text)
    _put("manifest", "whole.json", text)
    _put("onnx", "whole.onnx", _graph())
    _put("records", "compressed.npz", (folder / RECORDS).read_bytes())
    plain = io.BytesIO()
    np.savez(plain, confidence=confidence, prediction=prediction, label=label, group=group)
    _put("records", "stored.npz", plain.getvalue())
    wild = io.BytesIO()
    np.savez(wild, confidence=1e30 * confidence, prediction=prediction - 9)
    _put("records", "wild.npz", wild.getvalue())
    for name, change in (("scalar", {"outputs"}), ("blind", {"inputs"})):
        manifest = json.loads(text)
        stage = manifest["stages"][0]
        for key in change:
            stage[key] = [stage[key][0] | {"shape": []}] if key == "outputs" else []
        _put("manifest", f"{name}.json", json.dumps(manifest))
    model = onnx.load_model_from_string(_graph())
    weight = model.graph.initializer[0]
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../outside")
    _put("onnx", "external.onnx", model.SerializeToString())


def _yaml() -> None:
    for name in ("demo-cpu", "battery"):
        text = (ROOT / "samples" / "profiles" / f"{name}.yaml").read_text(encoding="utf-8")
        _put("profile", f"{name}.yaml", text)
    _put("profile", "merged.yaml", "a: &a {x: 1}\nb: {<<: [*a, *a]}\nc: !!bool 1\n")
    train = (ROOT / "samples" / "demo" / "train.yaml").read_text(encoding="utf-8")
    _put("training", "demo.yaml", train)
    short = yaml.safe_load(train) | {"augment": {"flip": 0.5}, "exit_weights": [1, 1, 2]}
    _put("training", "short.yaml", yaml.safe_dump(short))


def _checkpoints() -> None:
    config = CascadeConfig(
        image_size=16,
        channels=1,
        classes=2,
        reuse_hidden=2,
        reuse_width=2,
        stages=tuple(
            StageConfig(grid=grid, width=8, depth=1, heads=1, mlp_ratio=1) for grid in (1, 2)
        ),
    )
    torch.manual_seed(0)
    cascade = Cascade(config).half()
    path = CORPUS / "safetensors" / "cascade.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    cascade.save(path, half=True, metadata={"source": "seed", "flops": [1.0, 2.0]})
    state = {official_name(name): tensor for name, tensor in cascade.state_dict().items()}
    _put("safetensors", "official.safetensors", safetensors.torch.save(state))
    figures = {"flops": [1.0, 2.0], "dynamic_threshold": np.array([[0.5, -np.inf]])}
    for name, zipped in (("zip.pth", True), ("legacy.pth", False)):
        buffer = io.BytesIO()
        content = {"model_state_dict": state, "epoch": 3, **figures}
        torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
        _put("checkpoint", name, buffer.getvalue())
    buffer = io.BytesIO()
    small = {"module.normal_token.head.bias": torch.zeros(2)}
    torch.save(small, buffer, _use_new_zipfile_serialization=False)
    _put("checkpoint", "small.pth", buffer.getvalue())
    repeated: list[Any] = [1.0, 2.0]
    for _ in range(40):
        repeated = [repeated, repeated]
    buffer = io.BytesIO()
    content = {"model": {"a": torch.zeros(1)}, "flops": repeated}
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    _put("checkpoint", "repeated.pth", buffer.getvalue())


def _images() -> None:
    levels = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(6, 8, 3)
    picture = Image.fromarray(levels)
    turned = Image.Exif()
    turned[0x0112] = 6
    for name in ("png", "jpeg", "bmp", "tiff", "gif", "webp", "ppm"):
        buffer = io.BytesIO()
        kept = {"exif": turned} if name in ("jpeg", "tiff", "webp", "png") else {}
        picture.save(buffer, name, **kept)
        _put("image", f"turned.{name}" if kept else f"plain.{name}", buffer.getvalue())


def _frames() -> None:
    for at, (order, kind) in enumerate(((0, 3), (1, 3), (2, 2), (3, 2), (4, 3), (0, 131))):
        sides = {3: (30, 24, 3), 2: (30, 24, 0), 131: (30, 24, 3)}[kind]
        sides = (30, 24, 2) if order == 4 else sides
        head = bytes([kind, order, *sides, 0, at, 2, 2, 8, 8])
        _put("frame", f"layout{at}", head + bytes(range(0, 256, 7)))


def _texts() -> None:
    for at, uri in enumerate(
        (
            "v4l2:///dev/video0?size=640x480&fps=30&format=mjpeg",
            "rtsp://user:${PASSWORD}@host:554/stream?token=x#part",
            "${CAMERA}",
            "file:///clip.mp4?loop=1",
            "gst://v4l2src ! videoconvert password=x",
            "csi://0?size=1280x720",
            "0",
            "test://?fps=5&stamp=1",
        )
    ):
        _put("uri", f"uri{at}", uri)
    for name, uri in (("digits", "9" * 5000), ("nul", "file://~a%00b"), ("long", "y" * 300)):
        _put("uri", name, uri)
    _put("uri", "lines", "a\nb?foo=1")
    _put("message", "next", '{"type": "next"}')
    _put("message", "budget", '{"type": "budget", "latency_ms": 1.2}')
    _put("message", "free", '{"type": "budget", "latency_ms": null}')
    _put("message", "source", '{"type": "source", "name": "gate"}')
    for name, line, rest in (
        ("page", "GET /?token=correct-horse HTTP/1.1", "Host: localhost:8080"),
        ("static", "GET /static/uplot/uPlot.min.css HTTP/1.1", "Host: [::1]"),
        ("health", "HEAD /healthz HTTP/1.1", "Host: 127.0.0.1\r\nCookie: dvt_edge_8080=x"),
        (
            "socket",
            "GET /live HTTP/1.1",
            "Host: localhost\r\nUpgrade: websocket\r\nOrigin: http://localhost\r\n"
            "Authorization: Bearer correct-horse",
        ),
    ):
        _put("http", name, f"{line}\r\n{rest}\r\n\r\n")


if __name__ == "__main__":
    onnx.checker.check_model(onnx.load_model_from_string(_graph()))
    for write in (_bundle, _yaml, _checkpoints, _images, _frames, _texts):
        write()
