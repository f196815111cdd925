"""The CUDA kernels against their CPU twins, and their time against bytes over bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kernel_twins
import numpy as np

from dvt_edge.profile import ColorOrder, InputConfig
from dvt_edge.runtime.backends.cuda_device import CudaDevice
from dvt_edge.runtime.backends.gpu_backend import GatherKernel
from dvt_edge.runtime.native import calls
from dvt_edge.runtime.native.library import kernels, kernels_unavailable, unavailable

SHARED_BYTES = 48 << 10
"""Shared memory of a block that every GPU gives without being asked."""
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
                "decide": _decide(device, fatbin),
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
    times = []
    for _ in range(runs + 3):
        device.timed(lambda: device.replay(graph))
        device.synchronize()
        times.append(device.elapsed_ms() / REPEATS)
    return float(np.median(times[3:]))


def _preprocess(device: CudaDevice, fatbin: bytes, bandwidth: float) -> list[Values]:
    config = InputConfig(resize=256, crop=224, mean=(0.5,) * 3, std=(0.25,) * 3)
    kernel = device.load_kernel(fatbin, "dvt_preprocess_kernel")
    rows = []
    for layout, shape in FRAMES:
        frame = device.allocate_mapped(shape, np.uint8)
        frame.array[...] = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        resized = (256, round(1920 * 256 / 1080))
        plan = calls.make_plan(
            config, layout, (1080, 1920), resized, frame.array.strides[0], np.float32
        )
        cut = plan and kernel_twins.tile(plan, SHARED_BYTES)
        assert plan is not None
        assert cut is not None
        expected = np.empty((3, 224, 224), np.float32)
        calls.preprocess(plan, frame.array, expected)
        on_device = device.allocate(frame.array.nbytes)
        out = device.allocate(expected.nbytes)
        device.upload(on_device, frame.array)
        tables = []
        for axis in (0, 1):
            table = kernel_twins.axis_table(plan, axis)
            mapped = device.allocate_mapped(table.shape, np.int32)
            mapped.array[...] = table
            address = device.allocate(table.nbytes)
            device.upload(address, mapped.array)
            tables.append((np.uintp(address), np.int32(table.shape[1] - 2)))
        width, height, needed = cut
        arguments = (
            np.frombuffer(bytes(plan), np.dtype((np.void, len(bytes(plan)))))[0],
            np.uintp(on_device),
            *tables[0],
            *tables[1],
            np.int32(width),
            np.int32(height),
            np.uintp(out),
        )
        grid = (-(-224 // width), -(-224 // height))

        def work(grid: tuple[int, int] = grid, a: Any = arguments, needed: int = needed) -> None:
            device.launch(kernel, grid, 256, *a, shared_bytes=needed)

        ms = _median_ms(device, work)
        found = np.empty_like(expected)
        device.download(found, out)
        floor = (frame.array.nbytes * (224 / resized[1]) + expected.nbytes) / bandwidth
        rows.append(
            {
                "layout": layout,
                "equal": bool((found == expected).all()),
                "largest_difference_levels": float(np.abs(found - expected).max() * 0.25 * 255),
                "median_us": 1e3 * ms,
                "floor_us": 1e6 * floor,
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
        gather = GatherKernel(device, fatbin, 64)
        gather([(address, row_bytes)], rows)
        found = np.empty((len(rows), row_bytes), np.uint8)
        device.download(found, address)
        ms = _median_ms(device, lambda g=gather, a=address, b=row_bytes: g.move(a, b))
        results.append(
            {
                "row_bytes": row_bytes,
                "equal": bool((found == host.array[rows]).all()),
                "median_us": 1e3 * ms,
                "floor_us": 1e6 * 2 * len(rows) * row_bytes / bandwidth,
            }
        )
    return results


def _decide(device: CudaDevice, fatbin: bytes) -> Values:
    kernel = device.load_kernel(fatbin, "dvt_decide_kernel")
    confidence = device.allocate_mapped((1024,), np.float32)
    confidence.array[:] = np.random.default_rng(0).random(1024)
    confidence.array[::17] = np.nan
    rows, count = device.allocate_mapped((1024,), np.int32), device.allocate_mapped((1,), np.int32)
    arguments = (
        np.uintp(confidence.address),
        np.int32(1024),
        np.float64(0.5),
        np.uintp(rows.address),
        np.uintp(count.address),
    )
    ms = _median_ms(device, lambda: device.launch(kernel, (4, 1), 256, *arguments))
    expected = kernel_twins.staying_rows(confidence.array, 0.5)
    found = rows.array[: count.array[0]]
    return {"equal": bool(np.array_equal(found, expected)), "median_us": 1e3 * ms}
