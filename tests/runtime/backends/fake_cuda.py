"""Stand-ins for pycuda and libcuda, which keep account of everything: no GPU is needed."""

# ruff: noqa: N802 - libcuda names its functions so

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

MIB = 1 << 20


@dataclass
class Node:
    """One node of a graph that was made node by node."""

    kind: str
    after: int
    """Handle of the node that it waits for; 0 for the first."""
    handle: int = 0
    """Conditional handle of an ``if``."""
    body: int = 0
    kernel: int = 0
    arguments: list[int] = field(default_factory=list)
    handle_of: int = 0
    """Its own."""


class Driver:
    """What pycuda and libcuda share: one GPU, its memory, and the calls that were made."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.launched: list[tuple[Any, ...]] = []
        """Arguments of the kernels that were launched."""
        self.local = threading.local()
        self.retained = 0
        self.free = 100 * MIB
        self.allocated: dict[int, int] = {}
        self.objects = 0
        self.streams: list[int] = []
        """Flags of those that were made."""
        self.graphs: set[int] = set()
        self.templates: set[int] = set()
        self.events: set[int] = set()
        """Those that a thread can sleep on."""
        self.modules: set[int] = set()
        self.leaked: list[str] = []
        """What was collected while no context was current, which pycuda cannot destroy."""
        self.cuda = 12060
        self.nodes: dict[int, list[Node]] = {}
        """Of graphs that were made node by node, in order."""
        self.conditions: dict[int, int] = {}
        """Conditional handles, and the graph that each belongs to."""
        self.capturing = False
        self.fails: dict[str, int] = {}
        """Status by the name of a call of libcuda's."""
        self.next = 0x7F00_0000_0000

    @property
    def stack(self) -> list[Any]:
        """Contexts of this thread."""
        if not hasattr(self.local, "stack"):
            self.local.stack = []
        stack: list[Any] = self.local.stack
        return stack

    def handle(self) -> int:
        """Wider than 32 bits, as the driver's are."""
        self.next += 4096
        return self.next

    def take(self, size: int) -> int:
        assert self.stack, "no context is current"
        self.free -= size
        address = self.handle()
        self.allocated[address] = size
        return address

    def give_back(self, address: int) -> None:
        assert self.stack, "no context is current"
        self.free += self.allocated.pop(address)


def fake_pycuda(driver: Driver) -> ModuleType:
    """``pycuda.driver`` as far as it is used, with its rules."""

    class Error(Exception):
        pass

    class OutOfMemoryError(Error):
        pass

    class Context:
        handle = 0x7FFF_0000_1000

        def push(self) -> None:
            if "push" in driver.fails:
                raise Error("cuCtxPushCurrent failed: context is destroyed")
            driver.stack.append(self)

        def pop(self) -> None:
            driver.stack.pop()

    class Device:
        def __init__(self, index: int) -> None:
            if "device" in driver.fails:
                raise Error("cuDeviceGet failed: no CUDA-capable device is detected")
            assert index == 0

        def retain_primary_context(self) -> Context:
            driver.retained += 1
            return Context()

        def name(self) -> str:
            return "Orin"

        def compute_capability(self) -> tuple[int, int]:
            return (8, 7)

        def get_attribute(self, attribute: str) -> int:
            return int(attribute == "integrated" and "discrete" not in driver.fails)

    class Allocation:
        def __init__(self, size: int) -> None:
            if size > driver.free:
                raise OutOfMemoryError("cuMemAlloc failed: out of memory")
            self.address: int | None = driver.take(size)

        def __int__(self) -> int:
            assert self.address is not None
            return self.address

        def free(self) -> None:
            assert self.address is not None, "freed twice"
            driver.give_back(self.address)
            self.address = None

    class Pinned(Allocation):
        def get_device_pointer(self) -> int:
            return int(self)

    class PinnedArray(np.ndarray):
        """NumPy alone decides on ``base``; pycuda sets it from C."""

        _owner: Any = None

        @property
        def base(self) -> Any:
            return self._owner

    def pagelocked_zeros(
        shape: tuple[int, ...], dtype: Any, order: str = "C", mem_flags: int = 0
    ) -> Any:
        assert mem_flags == 2
        array = np.zeros(shape, dtype).view(PinnedArray)
        array._owner = Pinned(array.nbytes)
        return array

    class Counted:
        def __init__(self, flags: int = 0) -> None:
            assert driver.stack, "no context is current"
            driver.objects += 1
            self.flags = flags
            self.handle = driver.handle()

        def __del__(self) -> None:
            driver.objects -= 1
            if not driver.stack:
                driver.leaked.append(type(self).__name__)

    class Stream(Counted):
        def __init__(self, flags: int = 0) -> None:
            super().__init__(flags)
            driver.streams.append(flags)

        def synchronize(self) -> None:
            assert not driver.capturing
            if "synchronize" in driver.fails:
                raise Error("cuStreamSynchronize failed: an illegal memory access was encountered")
            driver.calls.append("synchronize")

    class Event(Counted):
        def record(self, stream: Stream) -> Event:
            driver.calls.append("record")
            return self

        def synchronize(self) -> Event:
            driver.calls.append("wait")
            return self

        def time_since(self, start: Event) -> float:
            return 2.5

    class Module(Counted):
        def get_function(self, name: str) -> Callable[..., None]:
            def function(*arguments: Any, **keywords: Any) -> None:
                assert set(keywords) == {"block", "grid", "shared", "stream"}
                driver.launched.append(arguments)
                driver.calls.append(f"{name} {keywords['block']} {keywords['shared']}")

            return function

    def htod(address: int, array: npt.NDArray[Any], stream: Stream) -> None:
        assert array.flags.c_contiguous
        assert type(address) is int
        driver.calls.append(f"htod {array.nbytes}")

    def dtoh(array: npt.NDArray[Any], address: int) -> None:
        driver.calls.append(f"dtoh {array.nbytes}")

    def dtod(target: int, source: int, size: int, stream: Stream) -> None:
        driver.calls.append(f"dtod {target} {source} {size}")

    module = ModuleType("pycuda.driver")
    vars(module).update(
        init=lambda: None,
        Device=Device,
        Error=Error,
        MemoryError=OutOfMemoryError,
        Stream=Stream,
        Event=Event,
        mem_alloc=Allocation,
        mem_get_info=lambda: (driver.free, 100 * MIB),
        pagelocked_zeros=pagelocked_zeros,
        memcpy_htod_async=htod,
        memcpy_dtoh=dtoh,
        memcpy_dtod_async=dtod,
        module_from_buffer=lambda code: Module(),
        device_attribute=type("device_attribute", (), {"INTEGRATED": "integrated"}),
        host_alloc_flags=type("host_alloc_flags", (), {"DEVICEMAP": 2}),
    )
    return module


class Libcuda:
    """The functions that pycuda does not bind; handles must arrive as pointers, whole."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._bodies: list[Any] = []

    def _call(self, name: str) -> int:
        self.driver.calls.append(name)
        return self.driver.fails.get(name, 0)

    def cuStreamBeginCapture_v2(self, stream: ctypes.c_void_p, mode: int) -> int:
        assert isinstance(stream, ctypes.c_void_p)
        assert mode == 1
        status = self._call("begin")
        self.driver.capturing = not status
        return status

    def cuStreamEndCapture(self, stream: ctypes.c_void_p, graph: Any) -> int:
        self.driver.capturing = False
        status = self._call("end")
        if not status:
            graph._obj.value = self.driver.handle()
            self.driver.templates.add(graph._obj.value)
        return status

    def cuGraphInstantiateWithFlags(
        self, runnable: Any, graph: ctypes.c_void_p, flags: ctypes.c_ulonglong
    ) -> int:
        assert graph.value in self.driver.templates
        assert isinstance(flags, ctypes.c_ulonglong)
        status = self._call("instantiate")
        if not status:
            runnable._obj.value = self.driver.handle()
            self.driver.graphs.add(runnable._obj.value)
        return status

    def cuEventCreate(self, event: Any, flags: int) -> int:
        assert flags == 3  # sleeps, without times
        status = self._call("event")
        if not status:
            event._obj.value = self.driver.handle()
            self.driver.events.add(event._obj.value)
        return status

    def cuEventDestroy_v2(self, event: ctypes.c_void_p) -> int:
        assert self.driver.stack, "no context is current"
        self.driver.events.remove(event.value or 0)
        return 0

    def cuEventRecord(self, event: ctypes.c_void_p, stream: ctypes.c_void_p) -> int:
        assert event.value in self.driver.events
        assert isinstance(stream, ctypes.c_void_p)
        return self._call("record event")

    def cuEventSynchronize(self, event: ctypes.c_void_p) -> int:
        assert event.value in self.driver.events
        return self._call("sleep")

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self.driver.cuda
        return 0

    def cuModuleLoadData(self, module: Any, code: bytes) -> int:
        module._obj.value = self.driver.handle()
        self.driver.modules.add(module._obj.value)
        return self._call("load")

    def cuModuleGetFunction(self, function: Any, module: ctypes.c_void_p, name: bytes) -> int:
        assert module.value in self.driver.modules
        function._obj.value = self.driver.handle()
        return self._call(name.decode())

    def cuModuleUnload(self, module: ctypes.c_void_p) -> int:
        assert self.driver.stack, "no context is current"
        self.driver.modules.remove(module.value or 0)
        return 0

    def cuGraphCreate(self, graph: Any, flags: int) -> int:
        graph._obj.value = self.driver.handle()
        self.driver.templates.add(graph._obj.value)
        self.driver.nodes[graph._obj.value] = []
        return 0

    def cuGraphAddChildGraphNode(
        self,
        node: Any,
        graph: ctypes.c_void_p,
        after: None,
        count: ctypes.c_size_t,
        child: ctypes.c_void_p,
    ) -> int:
        assert (after, count.value) == (None, 0)
        assert child.value in self.driver.templates
        return self._node(node, graph, 0, "graph")

    def cuGraphConditionalHandleCreate(
        self, handle: Any, graph: ctypes.c_void_p, context: ctypes.c_void_p, value: int, flags: int
    ) -> int:
        assert (context.value, value, flags) == (0x7FFF_0000_1000, 0, 1)
        assert graph.value in self.driver.nodes
        handle._obj.value = self.driver.handle()
        self.driver.conditions[handle._obj.value] = graph.value or 0
        return self._call("condition")

    def cuGraphAddNode_v2(
        self,
        node: Any,
        graph: ctypes.c_void_p,
        after: Any,
        edges: None,
        count: ctypes.c_size_t,
        parameters: Any,
    ) -> int:
        given = parameters._obj
        assert (edges, count.value) == (None, 1)
        assert (list(given.reserved), given.reserved_too) == ([0, 0, 0], 0)
        if given.kind == 13:
            rest = given.of.conditional
            assert (rest.kind, rest.bodies, rest.context) == (0, 1, 0x7FFF_0000_1000)
            assert self.driver.conditions[rest.handle] == graph.value
            body = self.driver.handle()
            self.driver.nodes[body] = []
            self._bodies.append((ctypes.c_void_p * 1)(body))  # which the driver owns
            rest.body = self._bodies[-1]
            made = Node("if", after._obj.value, handle=rest.handle, body=body)
        else:
            kernel = given.of.kernel
            assert given.kind == 0
            assert (list(kernel.grid), list(kernel.block)) == ([1, 1, 1], [1, 1, 1])
            types = (*[ctypes.c_uint64] * 2, ctypes.c_int, *[ctypes.c_uint64] * 3)
            arguments = [
                ctypes.cast(kernel.arguments[i], ctypes.POINTER(of)).contents.value
                for i, of in enumerate(types)
            ]
            made = Node("exit", after._obj.value, kernel=kernel.function, arguments=arguments)
        return self._node(node, graph, made.after, made.kind, made)

    def _node(
        self, node: Any, graph: ctypes.c_void_p, after: int, kind: str, made: Node | None = None
    ) -> int:
        status = self._call(f"add {kind}")
        if not status:
            node._obj.value = self.driver.handle()
            made = made or Node(kind, after)
            made.handle_of = node._obj.value
            self.driver.nodes[graph.value or 0].append(made)
        return status

    def cuGraphDestroy(self, graph: ctypes.c_void_p) -> int:
        self.driver.templates.remove(graph.value or 0)
        return self._call("destroy")

    def cuGraphLaunch(self, graph: ctypes.c_void_p, stream: ctypes.c_void_p) -> int:
        assert isinstance(stream, ctypes.c_void_p)
        assert graph.value in self.driver.graphs
        return self._call("launch")

    def cuGraphExecDestroy(self, graph: ctypes.c_void_p) -> int:
        assert self.driver.stack, "no context is current"
        self.driver.graphs.remove(graph.value or 0)
        return self._call("drop")

    def cuGetErrorString(self, status: int, text: Any) -> int:
        if status == 901:
            text._obj.value = b"operation failed due to a previous error during capture"
        return 0
