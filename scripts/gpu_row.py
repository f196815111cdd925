"""One row of the GPU proof, in a process of its own: what crashes or hangs here is one row.

    python scripts/gpu_row.py KIND RESULT ARGUMENTS

``gpu_proof.py`` runs it. RESULT is written after every step, whole each time, so that what was
found stays when the process dies; ARGUMENTS are those of the function KIND, as JSON.
"""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dvt_edge.errors import BackendError, DvtEdgeError
from dvt_edge.files.replacing import write_text

Values = dict[str, Any]
LIBRARIES = ("torch", "onnx", "onnxruntime", "pycuda", "tensorrt", "tensorrt_rtx")
SANITIZER = "/usr/local/cuda/bin/compute-sanitizer"


class Result:
    """A JSON file that always holds what is known so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: Values = {"claims": {}}

    def set(self, **values: Any) -> None:
        self._values |= values
        write_text(self._path, json.dumps(self._values))

    def conclude(self, claim: str, state: str, detail: str, **values: Any) -> None:
        outcome = {"state": state, "detail": detail, "values": values}
        self.set(claims=self._values["claims"] | {claim: outcome})


def machine(result: Result) -> None:
    """The GPU and the libraries; reading the driver may crash a broken installation."""
    from dvt_edge.machine.driver import read_driver

    result.set(
        versions={name: _version(name) for name in LIBRARIES},
        builds_for={name: capabilities(name) for name in ("tensorrt", "tensorrt_rtx")},
    )
    driver = read_driver()
    if driver is None or not driver.gpus:
        result.set(gpu=None)
        return
    gpu = driver.gpus[0]
    result.set(gpu=gpu.name, compute_capability=gpu.compute_capability, driver_cuda=driver.cuda)


def _version(name: str) -> str:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        return f"missing ({error})"
    text = getattr(module, "VERSION_TEXT", None)  # pycuda's
    return str(getattr(module, "__version__", None) or text or "version unknown")


def capabilities(module: str) -> list[str]:
    """GPUs that a TensorRT names as targets; none where it builds for the one that is there, as
    ``tensorrt`` does, or is missing."""
    try:
        targets = getattr(importlib.import_module(module), "ComputeCapability", None)
    except ImportError:
        return []
    return [name for name in getattr(targets, "__members__", {}) if name.startswith("SM")]


def prepare(result: Result, model: str, precision: str, folder: str) -> None:
    """Graphs, scenes and the CPU's answers, for all backends."""
    from gpu_cascades import prepare as write

    prepared = write(model, precision, Path(folder))
    result.set(images=len(prepared.images))


def cascade(result: Result, backend: str, model: str, precision: str, folder: str) -> None:
    """Every claim that is about a cascade, on one backend, and latencies."""
    from gpu_cascades import Prepared, opener
    from gpu_case import Case
    from gpu_claims import CLAIMS
    from gpu_latency import latency

    claims = [claim for claim in CLAIMS if claim.concerns(backend, model)]
    result.set(running=claims[0].name)
    prepared = Prepared.load(Path(folder))
    try:
        open_it = opener(backend, prepared)
        first = open_it()
    except (DvtEdgeError, ImportError) as error:
        result.set(refused=str(error), running=None)
        return
    try:
        case = Case(backend, precision, prepared, open_it, first)
        for claim in claims:
            assert claim.attempt is not None
            result.set(running=claim.name)
            try:
                outcome = asdict(claim.attempt(case))
            except Exception as error:
                traceback.print_exc()
                outcome = {"state": "fails", "detail": _words(error), "values": {}}
            result.conclude(claim.name, outcome["state"], outcome["detail"], **outcome["values"])
        result.set(running="latency", name=first.name, bytes_resident=first.bytes_resident)
        try:
            result.set(latency=latency(case))
        except Exception as error:
            traceback.print_exc()
            result.set(latency_failed=_words(error))
    finally:
        first.close()
    result.set(running=None)


def kernels(result: Result) -> None:
    """The compiled kernels against their CPU twins, and their times."""
    from gpu_kernels import prove_kernels

    from dvt_edge.runtime.backends.cuda_device import CudaDevice

    result.set(running="kernels")
    try:
        CudaDevice().close()
    except BackendError as error:
        result.conclude("kernels", "not tried", str(error))
        result.set(running=None)
        return
    found = prove_kernels()
    equal = list(_equals(found))
    if "failed" in found or not equal:
        result.conclude("kernels", "not tried", str(found.get("failed") or "nothing was compared"))
    else:
        state = "holds" if all(equal) else "fails"
        result.conclude("kernels", state, f"{sum(equal)} of {len(equal)} comparisons", **found)
    result.set(running=None)


def _equals(values: Any) -> Iterator[bool]:
    """Every value called ``equal``, at any depth."""
    inner = values.values() if isinstance(values, dict) else values
    if isinstance(values, dict) and "equal" in values:
        yield bool(values["equal"])
    if isinstance(values, dict | list | tuple):
        for value in inner:
            yield from _equals(value)


def sanitizer(result: Result) -> None:
    """The kernels once more, under compute-sanitizer's memcheck."""
    result.set(running="sanitizer")
    tool = shutil.which("compute-sanitizer") or SANITIZER
    if not Path(tool).exists():
        result.conclude("sanitizer", "not tried", "compute-sanitizer is not installed")
        result.set(running=None)
        return
    with tempfile.TemporaryDirectory() as folder:
        inner = Path(folder) / "kernels.json"
        command = [tool, "--tool", "memcheck", "--error-exitcode", "9"]
        done = subprocess.run(
            [*command, sys.executable, __file__, "kernels", str(inner), "{}"],
            capture_output=True,
            text=True,
            check=False,
        )
        ran = json.loads(inner.read_text())["claims"].get("kernels") if inner.exists() else None
    summary = [line for line in done.stdout.splitlines() if "ERROR SUMMARY" in line]
    if ran is None or ran["state"] == "not tried":
        reason = "the kernels did not run under it" if ran is None else ran["detail"]
        result.conclude("sanitizer", "fails" if done.returncode == 9 else "not tried", reason)
    else:
        clean = done.returncode == 0 and bool(summary) and " 0 errors" in summary[-1]
        detail = summary[-1] if summary else done.stdout[-300:]
        result.conclude("sanitizer", "holds" if clean else "fails", detail.strip("= "))
    result.set(running=None)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


KINDS: dict[str, Callable[..., None]] = {
    "machine": machine,
    "prepare": prepare,
    "cascade": cascade,
    "kernels": kernels,
    "sanitizer": sanitizer,
}


if __name__ == "__main__":
    KINDS[sys.argv[1]](Result(Path(sys.argv[2])), **json.loads(sys.argv[3]))
