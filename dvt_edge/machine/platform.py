"""A machine and its TensorRT, and whether engines that were built on one fit another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from dvt_edge.errors import BundleError
from dvt_edge.files.documents import Document
from dvt_edge.machine.board import Board
from dvt_edge.machine.driver import Driver

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Python module of each backend."""


class Platform(Document):
    """A machine and its TensorRT: where engines were built, or where they shall run."""

    backend: Literal["tensorrt", "tensorrt-rtx"]
    version: str
    """Of TensorRT, all parts."""
    compute_capabilities: tuple[str, ...] = Field(min_length=1)
    """That the engines were built for, such as ``8.7``; the GPU's own where they shall run."""
    device: str | None = None
    """Name of the GPU; None where engines are built ahead of time, without one."""
    cuda: str | None = None
    l4t: str | None = None
    """Release of Jetson Linux."""
    power_mode: str | None = None


def platform_here(
    backend: Literal["tensorrt", "tensorrt-rtx"],
    version: str,
    driver: Driver | None,
    board: Board,
    capabilities: Sequence[int] = (),
) -> Platform | None:
    """This machine with TensorRT ``version``; None where it has no GPU and none is named.

    ``capabilities`` (86 for 8.6) are those to build for; without them the GPU's own.
    """
    gpu = driver.gpus[0] if driver and driver.gpus else None
    targets = tuple(f"{c // 10}.{c % 10}" for c in capabilities)
    if not targets and gpu is not None:
        targets = (gpu.compute_capability,)
    if not targets:
        return None
    return Platform(
        backend=backend,
        version=version,
        compute_capabilities=targets,
        device=gpu.name if gpu is not None and gpu.compute_capability in targets else None,
        cuda=board.cuda or (driver.cuda if driver else None),
        l4t=board.l4t,
        power_mode=board.power_mode,
    )


def check_platform(built: Platform, found: Platform, folder: Path) -> list[str]:
    """Whether engines of ``built`` may be loaded on ``found``, known before they are.

    Returns remarks about what does not stop them but changes their timing. Raises
    :class:`~dvt_edge.errors.BundleError`, with both sides and the command that rebuilds.
    """
    pairs = [("backend", built.backend, found.backend), ("version", built.version, found.version)]
    if not set(built.compute_capabilities) & set(found.compute_capabilities):
        expected, here = (", ".join(p.compute_capabilities) for p in (built, found))
        pairs.append(("compute capability", expected, here))
    if built.backend == "tensorrt":  # whose kernels were timed on that very device
        pairs.append(("GPU", str(built.device), str(found.device)))
    wrong = [(what, a, b) for what, a, b in pairs if a != b]
    if wrong:
        differences = "; ".join(f"{what}: built for {a}, found {b}" for what, a, b in wrong)
        raise BundleError(
            f"{folder}: its engines do not fit this machine ({differences}); rebuild them here "
            "with 'dvt-edge build --phase device --profile FILE'"
        )
    settings = (
        ("L4T", built.l4t, found.l4t),
        ("CUDA", built.cuda, found.cuda),
        ("power mode", built.power_mode, found.power_mode),
    )
    return [
        f"{what} was {a} when the engines were built, now {b}"
        for what, a, b in settings
        if a and b and a != b
    ]
