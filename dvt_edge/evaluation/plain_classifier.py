"""Any ONNX classifier on the CPU, to compare a cascade with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from dvt_edge.errors import BackendError, DvtEdgeError
from dvt_edge.profile import ColorOrder, InputConfig
from dvt_edge.runtime.backends.onnxruntime_cpu import open_session
from dvt_edge.runtime.preprocess import Preprocessor

EXPECTED = "expected one float32 image input [N, C, H, W] and logits or probabilities [N, classes]"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a classifier says of one image."""

    class_id: int
    latency_ms: float
    """Preprocessing included."""
    exit_stage: int = 1
    energy_mj: float | None = None


class PlainClassifier:
    """One ONNX file, fed as ``like`` says at its own image size.

    Raises :class:`~dvt_edge.errors.BackendError` for a file that ONNX Runtime does not open, and
    for anything but one float image input and one output of a score per class.
    """

    precision = "as exported"
    exits = 1

    def __init__(self, path: Path, like: InputConfig, threads: int = 0) -> None:
        if not path.is_file():
            raise BackendError(f"{path}: no such file; give the path of an ONNX model")
        try:
            self._session = open_session(str(path), threads)
        except BackendError as error:
            raise BackendError(f"{path}: {str(error).replace('a stage', 'it')}") from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        size = _image_size(path, inputs, like)
        scores = [o.name for o in outputs if o.type == "tensor(float)" and len(o.shape) == 2]
        if not scores:
            found = ", ".join(f"{o.name} {o.type} {o.shape}" for o in outputs)
            raise BackendError(
                f"{path}: {EXPECTED}, found the outputs {found}; export it with the scores as an "
                "output"
            )
        self._input, self._output = inputs[0].name, scores[0]
        resize = max(size, round(like.resize * size / like.crop))
        self._preprocess = Preprocessor(
            InputConfig.model_validate(like.model_dump() | {"crop": size, "resize": resize})
        )
        self._image = np.zeros((1, *self._preprocess.shape), np.float32)
        self.path = path
        self.name = path.name
        self.engine = f"ONNX Runtime {onnxruntime.__version__}, CPU"
        # How many: its file names none. Running it once shows now what it refuses.
        self.classes: Sequence[str] | int = self._run().shape[1]
        beside = path.with_name(path.name + ".data")
        self.size_bytes = path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)
        """Of the file and of weights beside it."""

    def classify(self, image: object, order: ColorOrder | None = None) -> Answer:
        """Classify one image, as ``Runtime.classify`` takes frames."""
        started = perf_counter()
        self._preprocess(image, self._image[0], order)
        class_id = int(self._run()[0].argmax())
        return Answer(class_id, 1e3 * (perf_counter() - started))

    def _run(self) -> npt.NDArray[np.float32]:
        """Scores [1, classes] of the image in place."""
        try:
            [scores] = self._session.run([self._output], {self._input: self._image})
        except Exception as error:
            raise BackendError(f"{self.path}: failed in ONNX Runtime: {error}") from None
        return np.asarray(scores, np.float32)


def _image_size(path: Path, inputs: list[Any], like: InputConfig) -> int:
    """Side of the image in pixels; raises for other inputs than one float image."""
    shown = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)

    def refuse(remedy: str) -> DvtEdgeError:
        return BackendError(f"{path}: {EXPECTED}, found the input {shown}; {remedy}")

    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise refuse("export it with the image as its only input")
    if inputs[0].type != "tensor(float)":
        raise refuse("convert it to a float32 input (onnxconverter-common: keep_io_types=True)")
    batch, channels, height, width = inputs[0].shape
    if isinstance(batch, int) and batch != 1:
        raise refuse("export it with a batch of 1 or a dynamic batch")
    if isinstance(channels, int) and channels != like.channels:
        if width in (1, 3):
            raise refuse("export it channels first")
        raise refuse(f"the profile that it is compared with gives {like.channels} channels")
    height, width = (side if isinstance(side, int) else like.crop for side in (height, width))
    if height != width or height < 4:
        raise refuse("only square images can be given")
    return int(height)
