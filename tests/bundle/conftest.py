"""A bundle of one made-up stage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dvt_edge.bundle.bundle import file_sha256, write_records
from dvt_edge.bundle.manifest import MANIFEST, RECORDS, SCHEMA_VERSION
from dvt_edge.policy import Records

TENSOR = {"name": "image", "shape": ["N", 1, 8, 8], "dtype": "float32"}
GRAPH = bytes([0x08, 8])
"""The shortest file that passes for one: ``ir_version: 8``."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle of one made-up stage."""
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "stage1.onnx").write_bytes(GRAPH)
    write_records(
        path / RECORDS,
        Records(
            np.array([[0.5], [0.9]], np.float32),
            np.array([[1], [0]], np.int32),
            np.array([1, 1], np.int32),
        ),
    )
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "build_key": "key",
        "device": "a board",
        "engine": {"backend": "onnxruntime"},
        "input": {"resize": 8, "crop": 8, "mean": [0], "std": [1], "color_order": "gray"},
        "exits": {},
        "budget": {"latency_ms": 2.0},
        "class_names": ["cat", "dog"],
        "frame_shape": [8, 8],
        "stages": [
            {
                "file": "stage1.onnx",
                "inputs": [TENSOR],
                "outputs": [TENSOR],
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
        "files": {name: file_sha256(path / name) for name in ("stage1.onnx", RECORDS)},
        "versions": {},
    }
    (path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return path
