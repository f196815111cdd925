"""Outputs of the authors' own code on regenerated weights, in PyTorch and through the graphs.

``tests/golden`` holds names and shapes of every tensor and the outputs, stored by the authors'
implementation in float32; ``official_state`` draws the same weights again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch

from dvt_edge.converters.graphs.chain import Chain
from dvt_edge.models import Cascade
from tests.conftest import stage_graphs

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-4


class Golden(NamedTuple):
    """One architecture's cascade and stored outputs."""

    name: str
    cascade: Cascade
    outputs: dict[str, npt.NDArray[np.float32]]


@pytest.fixture(
    scope="module",
    params=[pytest.param("dvt_deit_small", marks=pytest.mark.slow), "dvt_t2t_vit_12"],
)
def golden(request: pytest.FixtureRequest, official_state: Callable[..., Any]) -> Golden:
    shapes = json.loads((GOLDEN / f"{request.param}.keys.json").read_text(encoding="utf-8"))
    with np.load(GOLDEN / f"{request.param}.npz") as archive:
        outputs = dict(archive)
    return Golden(request.param, Cascade.load_official(official_state(shapes)), outputs)


@pytest.fixture(scope="module")
def images() -> npt.NDArray[np.float32]:
    generator = np.random.Generator(np.random.PCG64(0))
    return generator.standard_normal((2, 3, 224, 224), dtype=np.float32)


def _compare(golden: Golden, stage: int, found: dict[str, npt.NDArray[np.float32]]) -> None:
    """Compare one stage's logits, features and relations with what was stored of them."""
    stored_part = {1: np.s_[:, ::7], 2: np.s_[:, ::7, ::3, ::3]}
    compared = 0
    for key, values in found.items():
        expected = golden.outputs.get(f"{key}{stage}")
        if expected is None:
            continue
        part = values[stored_part[stage]] if key == "relations" else values
        assert part.shape == expected.shape
        assert np.abs(part - expected).max() <= TOLERANCE, f"{key} of stage {stage}"
        compared += 1
    assert compared == (1 if stage == 3 else 3)


def test_pytorch(golden: Golden, images: npt.NDArray[np.float32]) -> None:
    with torch.no_grad():
        outputs = golden.cascade(torch.from_numpy(images))
    for stage, output in enumerate(outputs, 1):
        given = {k: v.numpy() for k, v in output._asdict().items() if v is not None}
        _compare(golden, stage, given)


def test_graphs(golden: Golden, images: npt.NDArray[np.float32]) -> None:
    graphs = stage_graphs(golden.cascade)
    for stage, outputs in enumerate(Chain(graphs).run(images), 1):
        _compare(golden, stage, {k.removeprefix("next_"): v for k, v in outputs.items()})
