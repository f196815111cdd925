"""Energy of a discrete NVIDIA GPU from the driver's counter: Volta and later, the GPU alone.

On Jetson the library loads and has no counter, so what counts is whether it can be read.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from dvt_edge.energy.counters import CounterMeter, Reader
from dvt_edge.errors import EnergyError
from dvt_edge.machine.clock import Clock
from dvt_edge.requirements import need


class NvmlMeter(CounterMeter):
    """GPU number ``index`` as NVML counts them, which is not always CUDA's order."""

    # The counter moves about ten times a second, and both ends of a window may be off by as much:
    # 4 % of 5 s.
    min_seconds = 5.0
    refresh_hz = 10.0

    def __init__(self, index: int = 0, clock: Clock | None = None) -> None:
        """Raises EnergyError where the counter cannot be read."""
        self.rail = f"GPU {index}"
        super().__init__(f"NVML {self.rail}", (self.rail,), clock=clock)
        self.ranges_mj = {}
        self._index = index
        with self.opened() as read:
            read()

    @contextmanager
    def opened(self) -> Iterator[Reader]:
        with _session() as nvml:
            device = nvml.nvmlDeviceGetHandleByIndex(self._index)

            def read() -> Mapping[str, float]:
                try:
                    return {self.rail: float(nvml.nvmlDeviceGetTotalEnergyConsumption(device))}
                except nvml.NVMLError as error:
                    raise EnergyError(
                        f"NVML reads no energy counter of {self.rail} ({error}); GPUs before Volta "
                        "and Jetson have none"
                    ) from None

            yield read


@contextmanager
def _session() -> Iterator[Any]:
    """NVML's functions while they may be called; its errors become EnergyError."""
    need("NVML", "pynvml", error=EnergyError)
    nvml = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise EnergyError(
            f"NVML does not start ({error}); nvidia-smi says whether a driver is installed"
        ) from None
    try:
        yield nvml
    except nvml.NVMLError as error:
        raise EnergyError(f"NVML does not answer ({error}); nvidia-smi lists the GPUs") from None
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
