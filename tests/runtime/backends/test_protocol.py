"""How costs and measurements name what they were measured on."""

from __future__ import annotations

import numpy as np
import pytest

from dvt_edge.machine.board import processor_name
from dvt_edge.runtime.backends.protocol import machine_name
from tests.runtime.conftest import FakeBackend


def test_machine_name(fake_backend: type[FakeBackend], monkeypatch: pytest.MonkeyPatch) -> None:
    """Processor, GPU, engine, and the power mode in force."""
    monkeypatch.setattr("dvt_edge.runtime.backends.protocol.read_power_mode", lambda: None)
    backend = fake_backend(np.zeros((1, 3)))
    assert machine_name(backend) == f"{processor_name()}, {backend.name}"
    backend.name, backend.gpu = "TensorRT 10.3.0.30", "Orin"
    monkeypatch.setattr("dvt_edge.runtime.backends.protocol.read_power_mode", lambda: "MAXN_SUPER")
    assert machine_name(backend) == (
        f"{processor_name()}, Orin, TensorRT 10.3.0.30, power mode MAXN_SUPER"
    )
