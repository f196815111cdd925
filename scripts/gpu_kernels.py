"""The CUDA kernels against their CPU twins, and their time against bytes over bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from dvt_edge.profile import ColorOrder, InputConfig
from dvt_edge.runtime.backends.cuda_device import CudaDevice
from dvt_edge.runtime.backends.device_preprocess import DevicePreprocess
from dvt_edge.runtime.backends.gpu_backend import GatherKernel
from dvt_edge.runtime.native.library import kernels, kernels_unavailable, unavailable
from dvt_edge.runtime.preprocess import Preprocessor

FRAMES: tuple[tuple[ColorOrder, tuple[int, ...]], ...] = (
    ("bgr", (1080, 1920, 3)),
    ("nv12", (1620, 1920)),
    ("yuyv", (1080, 1920, 2)),
)

REPEATS = 20
"""Launches in one measurement."""

Values = dict[str, Any]


def prove_kernels() -> Values:
    """Every kernel against its CPU twin, and its time against bytes over bandwidth."""
    reason = unavailable() or kernels_unavailable()
    fatbin = kernels()
    if reason or fatbin is None:
        return {"failed": reason}
    device = CudaDevice()
    try:
        with device.current():
            bandwidth = _bandwidth(device)
            return {
                "bandwidth_gb_s": bandwidth / 1e9,
                "preprocess": _preprocess(device, fatbin, bandwidth),
                "gather": _gather(device, fatbin, bandwidth),
            }
    finally:
        device.close()


def _bandwidth(device: CudaDevice) -> float:
    """Bytes per second that a copy within the device reads and writes."""
    size = 256 << 20
    source, target = device.allocate(size), device.allocate(size)
    return 2 * size / (1e-3 * _median_ms(device, lambda: device.copy(target, source, size)))


def _median_ms(device: CudaDevice, work: Callable[[], None], runs: int = 30) -> float:
    """Of one ``work``, many of which run from one graph: no launch from the host is in it."""
    work()  # lazily loaded code must not be loaded within a capture
    device.synchronize()

    def repeated() -> None:
        for _ in range(REPEATS):
            work()

    graph = device.capture(repeated)
    times = [device.timed(lambda: device.replay(graph)) for _ in range(runs + 3)]
    return float(np.median(times[3:])) / REPEATS


def _preprocess(device: CudaDevice, fatbin: bytes, bandwidth: float) -> list[Values]:
    config = InputConfig(resize=256, crop=224, mean=(0.5,) * 3, std=(0.25,) * 3)
    host, make = Preprocessor(config), DevicePreprocess(device, fatbin)
    out = device.allocate(3 * 224 * 224 * 2)
    rows = []
    for layout, shape in FRAMES:
        frame = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        expected, found = np.empty((2, 3, 224, 224), np.float16)
        host(frame, expected, layout)
        assert host.hand_over(frame, layout, make.take, 0, np.float16)
        # With the frame's way to the device, which a GPU with memory of its own needs.
        whole = _median_ms(device, lambda: make.make_image(0, out))
        alone = _median_ms(device, lambda: make.launch(0, out))
        device.download(found, out)
        read = frame.nbytes * 224 / round(1920 * 256 / 1080)
        rows.append(
            {
                "layout": layout,
                "equal": bool((found == expected).all()),
                "largest_difference_levels": float(np.abs(found - expected).max() * 0.25 * 255),
                "median_us": 1e3 * alone,
                "with_upload_us": 1e3 * whole,
                "floor_us": 1e6 * (read + expected.nbytes) / bandwidth,
            }
        )
    return rows


def _gather(device: CudaDevice, fatbin: bytes, bandwidth: float) -> list[Values]:
    results = []
    for row_bytes in (16, 20, 12_800, 1_469_000, 2_299_200):
        shape = (64, row_bytes)
        host = device.allocate_mapped(shape, np.uint8)
        host.array[...] = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        address = device.allocate(host.array.nbytes)
        device.upload(address, host.array)
        rows = np.flatnonzero(np.random.default_rng(1).random(64) < 0.5)
        gather = GatherKernel(device, fatbin)
        gather([(address, row_bytes)], rows)
        found = np.empty((len(rows), row_bytes), np.uint8)
        device.download(found, address)
        ms = _median_ms(device, partial(gather, [(address, row_bytes)], rows))
        results.append(
            {
                "row_bytes": row_bytes,
                "equal": bool((found == host.array[rows]).all()),
                "median_us": 1e3 * ms,
                "floor_us": 1e6 * 2 * len(rows) * row_bytes / bandwidth,
            }
        )
    return results
