"""The whole cascade at batch 1 as one CUDA graph, its exits decided on the device.

Behind each stage a kernel compares the confidence with the threshold and sets the condition of a
node that holds the rest of the cascade, so the host launches once and waits once:

    stage 1 -> exit 1 -> if it goes on: [ stage 2 -> exit 2 -> if it goes on: [ ... ] ]

It needs conditional nodes, which CUDA has from 12.4 on. This has not run on a GPU yet; what is
tested is the graph that is asked of a stand-in for the driver.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from dvt_edge.errors import BackendError
from dvt_edge.runtime.backends.gpu_backend import DeviceBackend
from dvt_edge.runtime.backends.protocol import StageAnswer

KERNEL = b"dvt_exit_kernel"
LEAST_CUDA = 12040
"""Of the driver, as ``cuDriverGetVersion`` counts."""

_ASSIGN_DEFAULT = 1
"""CU_GRAPH_COND_ASSIGN_DEFAULT: the condition is 0 again at each launch."""
_KERNEL_NODE, _CONDITIONAL_NODE = 0, 13
_IF = 0
_NONE = ctypes.c_size_t(0)
"""Dependencies of a graph's first node."""

_STAGES = "or set engine.graph to stages"


class _Kernel(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v3."""

    _fields_ = (
        ("function", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("extra", ctypes.c_void_p),
        ("kernel", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    )


class _Conditional(ctypes.Structure):
    """CUDA_CONDITIONAL_NODE_PARAMS."""

    _fields_ = (
        ("handle", ctypes.c_ulonglong),
        ("kind", ctypes.c_int),
        ("bodies", ctypes.c_uint),
        ("body", ctypes.POINTER(ctypes.c_void_p)),
        ("context", ctypes.c_void_p),
    )


class _Either(ctypes.Union):
    _fields_ = (
        ("kernel", _Kernel),
        ("conditional", _Conditional),
        ("reserved", ctypes.c_longlong * 29),
    )


class NodeParameters(ctypes.Structure):
    """CUgraphNodeParams."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("reserved", ctypes.c_int * 3),
        ("of", _Either),
        ("reserved_too", ctypes.c_longlong),
    )


class ConditionalCascade:
    """Runs the stages of ``backend`` for one frame with one launch.

    ``fatbin`` are the compiled kernels. Raises :class:`~dvt_edge.errors.BackendError`, with the
    reason, where the driver, the kernels or an engine do not allow it.
    """

    def __init__(self, backend: DeviceBackend, fatbin: bytes) -> None:
        self._backend, self._device = backend, backend.device
        version = ctypes.c_int()
        self._device.call("cuDriverGetVersion", ctypes.byref(version))
        if version.value < LEAST_CUDA:
            raise BackendError(
                "engine.graph: conditional needs an NVIDIA driver for CUDA 12.4 or later, this one "
                f"is for {version.value // 1000}.{version.value % 1000 // 10}; update it, {_STAGES}"
            )
        self._graphs: dict[int, int] = {}
        with self._device.current():
            self._kernel = self._load(fatbin)
            stages = backend.stage_count
            self._thresholds = self._device.allocate_mapped((stages,), np.float64)
            self._ran = self._device.allocate_mapped((1,), np.int32)
            self._ended_ns = self._device.allocate_mapped((stages,), np.uint64)

    def __call__(
        self, thresholds: Sequence[float], slot: int
    ) -> tuple[list[StageAnswer], list[float]]:
        """Run the image of ``slot`` until its confidence reaches one of ``thresholds`` [K].

        Returns the answers of the stages that ran and, from the second on, how long each took in
        milliseconds, its exit decision included.
        """
        device, backend = self._device, self._backend
        with device.current():
            backend.send(1, slot)
            at = backend.image_address(slot)
            if at not in self._graphs:
                self._graphs[at] = self._build(slot)
            self._thresholds.array[:] = thresholds
            device.run(self._graphs[at], 1)
        ran = int(self._ran.array[0])
        ended = self._ended_ns.array[:ran].astype(np.int64)
        answers = [backend.answer(stage, 1) for stage in range(ran)]
        return answers, (np.diff(ended) / 1e6).tolist()

    def _load(self, fatbin: bytes) -> ctypes.c_void_p:
        """The exit kernel; pycuda does not give the handle of its own."""
        module, kernel = ctypes.c_void_p(), ctypes.c_void_p()
        device = self._device
        device.call("cuModuleLoadData", ctypes.byref(module), fatbin)
        device.on_close(device.later("cuModuleUnload", module))
        try:
            device.call("cuModuleGetFunction", ctypes.byref(kernel), module, KERNEL)
        except BackendError:
            raise BackendError(
                "engine.graph: conditional needs kernels that were compiled by CUDA 12.4 or later; "
                f"install dvt-edge again with a newer nvcc, {_STAGES}"
            ) from None
        return kernel

    def _build(self, slot: int) -> int:
        graph = ctypes.c_void_p()
        self._device.call("cuGraphCreate", ctypes.byref(graph), 0)
        try:
            self._fill(graph, 0, slot)
            return self._device.instantiate(graph)
        finally:
            self._device.call("cuGraphDestroy", graph)

    def _fill(self, graph: ctypes.c_void_p, stage: int, slot: int) -> None:
        """Put ``stage``, its exit and everything behind that into ``graph``."""
        device, backend = self._device, self._backend
        enqueue = backend.enqueue(stage, slot)
        if not backend.captured(stage, 1, slot):
            raise BackendError(
                f"engine.graph: conditional needs stages that can be captured, and stage "
                f"{stage + 1} cannot; rebuild the engines, {_STAGES}"
            )
        with device.recorded(enqueue) as recorded:
            ran = ctypes.c_void_p()
            device.call("cuGraphAddChildGraphNode", ctypes.byref(ran), graph, None, _NONE, recorded)
        last = stage == backend.stage_count - 1
        going_on = ctypes.c_ulonglong()
        if not last:
            device.call(
                "cuGraphConditionalHandleCreate",
                ctypes.byref(going_on),
                graph,
                device.context,
                0,
                _ASSIGN_DEFAULT,
            )
        arguments = (
            ctypes.c_void_p(backend.addresses(stage, slot)["confidence"]),
            ctypes.c_void_p(self._thresholds.address),
            ctypes.c_int(stage),
            going_on,
            ctypes.c_void_p(self._ran.address),
            ctypes.c_void_p(self._ended_ns.address),
        )
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        decide = NodeParameters(kind=_KERNEL_NODE)
        decide.of.kernel = _Kernel(
            function=self._kernel, grid=(1, 1, 1), block=(1, 1, 1), arguments=pointers
        )
        decided = self._add(graph, ran, decide)
        if last:
            return
        rest = NodeParameters(kind=_CONDITIONAL_NODE)
        rest.of.conditional = _Conditional(
            handle=going_on.value, kind=_IF, bodies=1, context=device.context
        )
        self._add(graph, decided, rest)
        self._fill(ctypes.c_void_p(rest.of.conditional.body[0]), stage + 1, slot)

    def _add(
        self, graph: ctypes.c_void_p, after: ctypes.c_void_p, node: NodeParameters
    ) -> ctypes.c_void_p:
        """Add ``node``, which runs once ``after`` is done."""
        added = ctypes.c_void_p()
        self._device.call(
            "cuGraphAddNode_v2",
            ctypes.byref(added),
            graph,
            ctypes.byref(after),
            None,
            ctypes.c_size_t(1),
            ctypes.byref(node),
        )
        return added
