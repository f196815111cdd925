"""The driver and its GPUs, with a libcuda that plays several machines."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from dvt_edge.errors import BackendError
from dvt_edge.machine.driver import Driver, Gpu, read_driver

ORIN = ("Orin", 8, 7)
THOR = ("NVIDIA Thor", 11, 0)


class FakeCuda:
    """The functions of libcuda that are asked, on simulated ``gpus``."""

    def __init__(self, version: int, *gpus: tuple[str, int, int], status: int = 0) -> None:
        self.version, self.gpus, self.status = version, gpus, status

    @staticmethod
    def _set(reference: Any, value: int) -> None:
        reference._obj.value = value

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        self._set(version, self.version)
        return 0

    def cuInit(self, flags: int) -> int:  # noqa: N802
        assert flags == 0
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        assert self.status == 0
        self._set(count, len(self.gpus))
        return 0

    def cuGetErrorString(self, status: int, text: Any) -> int:  # noqa: N802
        known = {804: b"forward compatibility was attempted on non supported HW"}
        text._obj.value = known.get(status)
        return 0 if status in known else 1

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        self._set(device, 10 + index)  # a handle is not the index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = self.gpus[device.value - 10][0].encode()[: size - 1]
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        self._set(value, self.gpus[device.value - 10][{75: 1, 76: 2}[attribute]])
        return 0


@pytest.fixture
def libcuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that puts a libcuda, or the error of loading one, in the real one's place."""

    def put(found: FakeCuda | OSError) -> None:
        def load(name: str) -> FakeCuda:
            assert name == "libcuda.so.1"
            if isinstance(found, OSError):
                raise found
            return found

        monkeypatch.setattr(ctypes, "CDLL", load)

    return put


@pytest.mark.parametrize(
    ("version", "gpus", "expected"),
    [
        (12060, (ORIN,), Driver("12.6", (Gpu("Orin", "8.7"),))),
        (13000, (THOR,), Driver("13.0", (Gpu("NVIDIA Thor", "11.0"),))),
        (12020, (ORIN, THOR), Driver("12.2", (Gpu("Orin", "8.7"), Gpu("NVIDIA Thor", "11.0")))),
        (12060, (), Driver("12.6", ())),
        (12060, (("x" * 300, 8, 6),), Driver("12.6", (Gpu("x" * 255, "8.6"),))),
    ],
)
def test_gpus(
    libcuda: Any, version: int, gpus: tuple[tuple[str, int, int], ...], expected: Driver
) -> None:
    libcuda(FakeCuda(version, *gpus))
    assert read_driver() == expected


def test_driver_without_a_gpu(libcuda: Any) -> None:
    """CUDA_ERROR_NO_DEVICE of cuInit: a driver, and nothing that it drives."""
    libcuda(FakeCuda(12060, status=100))
    assert read_driver() == Driver("12.6", ())


@pytest.mark.parametrize(
    ("status", "reason"),
    [(804, r"forward compatibility .* \(804\)"), (999, r"unknown error \(999\)")],
)
def test_driver_that_does_not_start(libcuda: Any, status: int, reason: str) -> None:
    libcuda(FakeCuda(12020, status=status))
    with pytest.raises(BackendError, match=rf"^for CUDA up to 12\.2; cuInit fails: {reason}"):
        read_driver()


def test_no_driver(libcuda: Any) -> None:
    text = "libcuda.so.1: cannot open shared object file: No such file or directory"
    libcuda(OSError(text))
    assert read_driver() is None


def test_driver_that_cannot_be_loaded(libcuda: Any) -> None:
    """A half that is missing is no missing driver."""
    libcuda(OSError("libnvrm_gpu.so: cannot open shared object file: No such file or directory"))
    with pytest.raises(BackendError, match=r"cannot be loaded \(libnvrm_gpu\.so"):
        read_driver()


def test_types_are_those_of_c() -> None:
    """What the fake takes apart is what ctypes hands to C."""
    number = ctypes.c_int(3)
    assert ctypes.byref(number)._obj is number  # type: ignore[attr-defined]
