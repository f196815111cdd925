"""What a manifest records of engines, and whether they fit the machine that opens them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dvt_edge.bundle.engine_records import Engines, PlanRecord, PrecisionFigures
from dvt_edge.errors import BundleError
from dvt_edge.machine.platform import Platform, check_platform
from tests.conftest import orin_platform

FOLDER = Path("out/bundle")


RTX: dict[str, Any] = {
    "backend": "tensorrt-rtx",
    "compute_capabilities": ("8.6", "8.9"),
    "device": None,
    "l4t": None,
    "power_mode": None,
}


def test_same_machine() -> None:
    assert check_platform(orin_platform(), orin_platform(), FOLDER) == []


@pytest.mark.parametrize(
    ("built", "found", "difference"),
    [
        ({}, {"version": "10.4.0"}, "version: built for 10.3.0, found 10.4.0"),
        (
            {"version": "10.3.0.30"},
            {"version": "10.3.0.31"},
            "version: built for 10.3.0.30, found 10.3.0.31",
        ),
        (
            {},
            {"backend": "tensorrt-rtx"},
            "backend: built for tensorrt, found tensorrt-rtx",
        ),
        (
            {},
            {"compute_capabilities": ("11.0",)},
            "compute capability: built for 8.7, found 11.0",
        ),
        ({}, {"device": "Orin Nano"}, "GPU: built for Orin, found Orin Nano"),
        ({"device": None}, {}, "GPU: built for None, found Orin"),
        (
            RTX,
            {**RTX, "compute_capabilities": ("12.0",)},
            "compute capability: built for 8.6, 8.9, found 12.0",
        ),
        (
            RTX,
            {**RTX, "compute_capabilities": ("12.0",), "version": "1.8"},
            "version: built for 10.3.0, found 1.8; compute capability: built for 8.6, 8.9, "
            "found 12.0",
        ),
    ],
)
def test_other_machines_are_refused(
    built: dict[str, Any], found: dict[str, Any], difference: str
) -> None:
    """With what was expected, what was found, and the command that mends it."""
    with pytest.raises(BundleError) as caught:
        check_platform(orin_platform(**built), orin_platform(**found), FOLDER)
    assert str(caught.value) == (
        f"{FOLDER}: its engines do not fit this machine ({difference}); rebuild them here with "
        "'dvt-edge build --phase device --profile FILE'"
    )


@pytest.mark.parametrize(
    ("built", "found", "remarks"),
    [
        (
            {},
            {"power_mode": "25W"},
            ["power mode was MAXN_SUPER when the engines were built, now 25W"],
        ),
        ({}, {"power_mode": None}, []),
        ({"l4t": None}, {}, []),
        (
            {"cuda": "12.2", "l4t": "36.3.0"},
            {},
            [
                "L4T was 36.3.0 when the engines were built, now 36.4.3",
                "CUDA was 12.2 when the engines were built, now 12.6.68",
            ],
        ),
        (RTX, {**RTX, "compute_capabilities": ("8.9",), "device": "RTX 4090"}, []),
    ],
)
def test_what_only_moves_the_timing_is_a_remark(
    built: dict[str, Any], found: dict[str, Any], remarks: list[str]
) -> None:
    assert check_platform(orin_platform(**built), orin_platform(**found), FOLDER) == remarks


def test_documents_survive_json() -> None:
    plan = PlanRecord(
        precision="int8",
        graph="stage1.int8.onnx",
        seconds=12.5,
        cached=False,
        warnings=("a",),
        planned={"int8 gemm": 8},
    )
    engines = Engines(
        platform=orin_platform(),
        flags=("STRONGLY_TYPED",),
        workspace_mb=1024,
        plans=(plan, plan.model_copy(update={"planned": None})),
        built_at="2025-01-01T00:00:00+00:00",
    )
    assert Engines.model_validate_json(engines.model_dump_json()) == engines


_PLAN = {"precision": "int8", "graph": "stage1.int8.onnx", "seconds": 1.0, "cached": False}
_CHOICE = {
    "stage": 1,
    "precision": "int8",
    "latency_ms": None,
    "same_class": None,
    "same_exit": None,
    "chosen": True,
    "remark": "",
}


@pytest.mark.parametrize(
    ("document", "values", "message"),
    [
        (PlanRecord, _PLAN | {"seconds": -1}, "greater than or equal to 0"),
        (PlanRecord, _PLAN | {"precision": "int4"}, "'int8', 'fp16' or 'fp32'"),
        (PlanRecord, _PLAN | {"layers": 3}, "layers"),
        (PrecisionFigures, _CHOICE | {"stage": 0}, "greater than or equal to 1"),
        (Platform, {"backend": "cuda", "version": "1", "compute_capabilities": ["8.7"]}, "backend"),
        (Platform, {"backend": "tensorrt", "version": "1", "compute_capabilities": []}, "capabil"),
        (
            Engines,
            {
                "platform": orin_platform().model_dump(),
                "flags": [],
                "workspace_mb": 1,
                "plans": [],
                "built_at": "",
            },
            "plans",
        ),
    ],
)
def test_documents_refuse(document: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        document.model_validate(values)
