"""One stage in ONNX Runtime's CUDA provider, on memory that it is given.

For x86-64 machines with an NVIDIA GPU and without TensorRT; behind the same device backend, so
reuse tensors stay on the device here as well.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

from dvt_edge.bundle.manifest import StageSpec
from dvt_edge.errors import BackendError
from dvt_edge.requirements import is_older

PROVIDER = "CUDAExecutionProvider"
OLDEST = (1, 21)
"""The first release that has every operator of a stage on the GPU, ArgMax being the last."""


def check_provider() -> None:
    """Whether graphs can run on a GPU here, before one is opened.

    Raises :class:`~dvt_edge.errors.BackendError`, with the remedy, on other machines than x86-64,
    and where this ONNX Runtime has no CUDA provider or is too old.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        raise BackendError(
            f"engine.provider cuda is for x86-64; on {platform.machine()}, as on a Jetson, set "
            "engine.backend to tensorrt and build again"
        )
    if PROVIDER not in ort.get_available_providers():
        raise BackendError(
            f"ONNX Runtime {ort.__version__} has no CUDA provider here; replace it: pip uninstall "
            "onnxruntime && pip install onnxruntime-gpu, or set engine.provider to cpu"
        )
    if is_older(ort.__version__, OLDEST):
        raise BackendError(
            f"ONNX Runtime {ort.__version__} is too old for engine.provider cuda, which needs "
            f"{'.'.join(map(str, OLDEST))} or later: pip install -U onnxruntime-gpu"
        )


def open_cuda_session(path: Path, stream: int) -> ort.InferenceSession:
    """A session over the graph at ``path`` that computes on ``stream``, a CUDA stream's handle.

    Raises :class:`~dvt_edge.errors.BackendError` where ONNX Runtime does not take the whole graph.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # What the CPU computed would go there and back, unseen and not counted.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings = {
        "device_id": "0",
        "user_compute_stream": str(stream),
        "use_tf32": "0",  # the exit is float32 because its confidence must be
    }
    try:
        return ort.InferenceSession(
            str(path),
            options,
            providers=[(PROVIDER, settings)],
            enable_fallback=0,  # else it tries the CPU and reports only how that failed
        )
    except Exception as error:  # ONNX Runtime's own types derive from RuntimeError and others
        raise BackendError(
            f"ONNX Runtime {ort.__version__} refused {path} on the GPU: {error}; check its CUDA "
            "and cuDNN, or set engine.provider to cpu"
        ) from None


class OnnxRuntimeCudaStage:
    """:class:`~dvt_edge.runtime.backends.tensorrt_stage.StageEngine` over a session."""

    scratch_bytes = 0
    """ONNX Runtime has memory of its own for intermediate tensors."""
    capturable = False

    def __init__(self, session: Any, spec: StageSpec, device_type: str = "cuda") -> None:
        self._session: Any = session
        self._spec, self._device_type = spec, device_type
        self._bindings: list[Any] = []

    def prepare(
        self, batch: int, addresses: Mapping[str, int], scratch: int, stream: int
    ) -> Callable[[], None]:
        """Bind every tensor of ``batch`` images; the result runs the stage on the session's stream.

        What it returns raises :class:`~dvt_edge.errors.BackendError` with ONNX Runtime's words.
        """
        binding = self._session.io_binding()
        for specs, bind in (
            (self._spec.inputs, binding.bind_input),
            (self._spec.outputs, binding.bind_output),
        ):
            for t in specs:
                shape, address = t.shape_at(batch), addresses[t.name]
                bind(t.name, self._device_type, 0, t.dtype, shape, address)
        index = len(self._bindings)
        self._bindings.append(binding)

        def enqueue() -> None:
            # By index: a function that outlives close() must not keep the session alive.
            try:
                self._session.run_with_iobinding(self._bindings[index])
            except Exception as error:
                raise BackendError(f"{self._spec.file}: failed in ONNX Runtime: {error}") from None

        return enqueue

    def warmed_up(self) -> None:
        """Nothing is compiled on first use."""

    def close(self) -> None:
        self._bindings.clear()
        self._session = None
