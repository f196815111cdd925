"""One stage in ONNX Runtime's CUDA provider, on memory that it is given.

For boards and servers without TensorRT; behind the same device backend, so reuse tensors stay on
the device here as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

from dvt_edge.bundle.manifest import StageSpec
from dvt_edge.errors import BackendError

PROVIDER = "CUDAExecutionProvider"


def open_cuda_session(path: Path, stream: int) -> ort.InferenceSession:
    """A session that computes on ``stream``; raises :class:`~dvt_edge.errors.BackendError`."""
    if PROVIDER not in ort.get_available_providers():
        raise BackendError(
            f"ONNX Runtime {ort.__version__} has no CUDA provider here; replace it: pip uninstall "
            "onnxruntime && pip install onnxruntime-gpu, or set engine.provider to cpu"
        )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(
            str(path),
            options,
            providers=[(PROVIDER, {"device_id": 0, "user_compute_stream": str(stream)})],
        )
    except Exception as error:  # ONNX Runtime's own types derive from RuntimeError and others
        raise BackendError(f"ONNX Runtime {ort.__version__} refused {path}: {error}") from None
    if session.get_providers()[0] != PROVIDER:  # it falls back to the CPU without a word
        raise BackendError(
            f"ONNX Runtime {ort.__version__} could not start its CUDA provider; 'dvt-edge doctor' "
            "checks driver and libraries"
        )
    return session


class OnnxRuntimeCudaStage:
    """:class:`~dvt_edge.runtime.backends.tensorrt_stage.StageEngine` over a session."""

    scratch_bytes = 0
    """ONNX Runtime has memory of its own for intermediate tensors."""
    capturable = False

    def __init__(self, session: Any, spec: StageSpec, device_type: str = "cuda") -> None:
        self._session: Any = session
        self._spec, self._device_type = spec, device_type
        self._bindings: dict[int, Any] = {}

    def prepare(self, batch: int, addresses: Mapping[str, int], scratch: int, stream: int) -> None:
        if batch in self._bindings:
            return
        binding = self._session.io_binding()
        for specs, bind in (
            (self._spec.inputs, binding.bind_input),
            (self._spec.outputs, binding.bind_output),
        ):
            for t in specs:
                shape, address = t.shape_at(batch), addresses[t.name]
                bind(t.name, self._device_type, 0, t.dtype, shape, address)
        self._bindings[batch] = binding

    def enqueue(self, batch: int, stream: int) -> None:
        try:
            self._session.run_with_iobinding(self._bindings[batch])
        except Exception as error:
            raise BackendError(f"{self._spec.file}: failed in ONNX Runtime: {error}") from None

    def close(self) -> None:
        self._bindings.clear()
        self._session = None
