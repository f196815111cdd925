"""Energy of a discrete NVIDIA GPU from the driver's counter: Volta and later, the GPU alone.

On Jetson the library loads and has no counter, so what counts is whether it can be read.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from dvt_edge.energy.polling import PolledMeter
from dvt_edge.errors import EnergyError
from dvt_edge.machine.clock import Clock
from dvt_edge.requirements import need

RAIL = "GPU 0"
"""The first as NVML counts them, which is not always CUDA's order."""


class NvmlMeter(PolledMeter):
    """The counter of :data:`RAIL`."""

    # The counter moves about ten times a second, and both ends of a window may be off by as much:
    # 4 % of 5 s.
    min_seconds = 5.0
    refresh_hz = 10.0

    def __init__(self, clock: Clock | None = None) -> None:
        """Raises EnergyError where the counter cannot be read."""
        super().__init__(f"NVML {RAIL}", (RAIL,), clock)
        need("NVML", "pynvml", error=EnergyError)
        self._nvml = importlib.import_module("pynvml")
        with self.session():
            self.read()

    @contextmanager
    def session(self) -> Iterator[None]:
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise EnergyError(
                f"NVML does not start ({error}); nvidia-smi says whether a driver is installed"
            ) from None
        try:
            yield
        finally:
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def read(self) -> Mapping[str, float]:
        try:
            device = self._nvml.nvmlDeviceGetHandleByIndex(0)
            return {RAIL: float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(device))}
        except self._nvml.NVMLError as error:
            raise EnergyError(
                f"NVML reads no energy counter of {RAIL} ({error}); nvidia-smi lists the GPUs, and "
                "those before Volta and on Jetson have none"
            ) from None

    def used_mj(self, rail: str, before: float, after: float, seconds: float) -> float:
        if after < before:
            raise EnergyError(
                f"the counter of {rail} went backwards: its driver was reloaded; measure again"
            )
        return after - before
