"""A builder that builds nothing, with the names that a release of TensorRT has.

Imported as ``tensorrt_rtx``, which links to this file, it has those of TensorRT-RTX.

``FAKE_TENSORRT`` in the environment is JSON: ``version`` (such as ``10.3.0``),
``log``, a file that gets every call as a JSON line, and ``act``, how the build goes: see
:meth:`Builder.build_serialized_network`. The plan is the graph's hash, so that it tells what it was
built from.
"""

from __future__ import annotations

import enum
import hashlib
import json
import os
import signal
import sys
import time
from typing import Any

_SETTINGS = json.loads(os.environ["FAKE_TENSORRT"])
_ACT = _SETTINGS.get("act", "")
_RTX = __name__ == "tensorrt_rtx"
__version__ = _SETTINGS["version"]

if _ACT == "garbage":
    print("a greeting of the library", flush=True)
    os.write(1, b"and one of its C++ half\n")
if _ACT == "not importable":
    raise ImportError("libnvinfer.so.10: cannot open shared object file")


def _record(call: str, *values: object) -> None:
    if "log" in _SETTINGS:
        with open(_SETTINGS["log"], "a", encoding="utf-8") as file:
            print(json.dumps([call, *values]), file=file)


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self) -> None:
        pass

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError("this class is to be derived from")


# Numbered as no release numbers them.
NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 3})
BuilderFlag = enum.IntEnum("BuilderFlag", {"TF32": 3, "DEBUG": 4})
MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE", "DLA_MANAGED_SRAM"])
ProfilingVerbosity = enum.Enum("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "DETAILED"])
if _RTX:  # of release 1.7.1
    BuilderFlag = enum.IntEnum(  # type: ignore[no-redef]
        "BuilderFlag", {"TF32": 3, "DEBUG": 4, "REQUIRE_USER_ALLOCATION": 9}
    )
    ComputeCapability = enum.Enum(
        "ComputeCapability", "NONE CURRENT SM75 SM80 SM86 SM89 SM120 SM121"
    )


class IProgressMonitor:
    def __init__(self) -> None:
        pass


class Dims(list[int]):
    """Sizes of a tensor."""


class _Tensor:
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, Dims(shape)


class _Network:
    graph = b""
    _inputs = (_Tensor("image", (-1, 1, 16, 16)), _Tensor("features", (-1, 5, 8)))
    num_inputs = len(_inputs)

    def get_input(self, index: int) -> _Tensor:
        return self._inputs[index]


class _ParserError:
    def desc(self) -> str:
        return "No importer registered for op: Attention"


class OnnxParser:
    def __init__(self, network: _Network, logger: ILogger) -> None:
        self.network = network
        self.num_errors = 1 if _ACT == "parser error" else 0

    def parse(self, graph: bytes) -> bool:
        self.network.graph = graph
        return not self.num_errors and _ACT != "parser says nothing"

    def get_error(self, index: int) -> _ParserError:
        return _ParserError()


class _Profile:
    def set_shape(self, name: str, low: object, best: object, high: object) -> None:
        _record("set_shape", name, low, best, high)


class _Config:
    progress_monitor: Any = None
    profiling_verbosity: enum.Enum

    def set_memory_pool_limit(self, pool: enum.Enum, size: int) -> None:
        _record("workspace", pool.name, size)

    def set_flag(self, flag: enum.IntEnum) -> None:
        _record("set_flag", flag.name)

    def clear_flag(self, flag: enum.IntEnum) -> None:
        _record("clear_flag", flag.name)

    def add_optimization_profile(self, profile: _Profile) -> None:
        _record("add_profile")


class _RtxConfig(_Config):
    num_compute_capabilities = 0

    def set_compute_capability(self, capability: enum.Enum, index: int) -> bool:
        assert 0 <= index < self.num_compute_capabilities
        _record("target", capability.name)
        return True


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> _Network:
        names = [f.name for f in NetworkDefinitionCreationFlag if flags & 1 << f]
        assert flags == sum(1 << NetworkDefinitionCreationFlag[name] for name in names)
        _record("create_network", names)
        return _Network()

    def create_builder_config(self) -> _Config:
        return _RtxConfig() if _RTX else _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        _record("build", config.profiling_verbosity.name)
        monitor, severity = config.progress_monitor, ILogger.Severity
        if monitor is not None:
            monitor.phase_start("Building engine", None, 6)
            if _ACT == "slow":
                time.sleep(0.25)
            monitor.step_complete("Building engine", 0)
        self.logger.log(severity.WARNING, "tactic skipped")
        self.logger.log(severity.WARNING, "tactic skipped")
        self.logger.log(severity.INFO, "chatter")
        if _ACT == "hang":
            time.sleep(600)
        if _ACT == "refuse":
            self.logger.log(severity.ERROR, "Non-zero zero point is not supported")
            self.logger.log(severity.ERROR, "cudaError 35 from the driver")
            self.logger.log(severity.INTERNAL_ERROR, "Assertion failed")
        if _ACT == "no driver":
            self.logger.log(severity.ERROR, "In generateForCurrent (cudaError 35: no driver)")
            self.logger.log(severity.WARNING, "CUDA lazy loading is not enabled")
        if _ACT in ("refuse", "refuse without a word", "no driver"):
            return None
        if _ACT == "raise":
            raise RuntimeError("pybind11 lost an argument")
        if _ACT in ("SIGSEGV", "SIGKILL"):
            print("last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), getattr(signal, _ACT))
        if _ACT == "listing":
            self.logger.log(severity.VERBOSE, "Layers:\nName: a")
        return b"plan of " + hashlib.sha256(network.graph).hexdigest().encode()
