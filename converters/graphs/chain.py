"""Running the stages one after the other during a build: all exits, on every image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from dvt_edge.bundle.manifest import NATIVE_DOMAIN, handed_on
from dvt_edge.policy.records import Records
from dvt_edge.runtime.backends.onnxruntime_cpu import open_session

Images = npt.NDArray[np.float32] | npt.NDArray[np.float16]
"""[n, C, S, S], normalised, in the graphs' own type."""
Tensors = dict[str, npt.NDArray[Any]]
BATCH = 16


def open_graph(model: onnx.ModelProto) -> ort.InferenceSession:
    """A session that uses all cores."""
    native = any(opset.domain == NATIVE_DOMAIN for opset in model.opset_import)
    return open_session(model.SerializeToString(), threads=0, native=native)


def run_graph(session: ort.InferenceSession, feeds: Tensors) -> Tensors:
    """All outputs for those of ``feeds`` that the graph reads."""
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {value.name: feeds[value.name] for value in session.get_inputs()})
    return dict(zip(names, values, strict=True))


class Chain:
    """Sessions over the first stages of a cascade."""

    def __init__(self, models: Sequence[onnx.ModelProto]) -> None:
        self._sessions = [open_graph(model) for model in models]

    def run(self, images: Images) -> Iterator[Tensors]:
        """All outputs of stage after stage for ``images``."""
        handed: Tensors = {}
        for session in self._sessions:
            outputs = run_graph(session, {"image": images, **handed})
            handed = handed_on(outputs)
            yield outputs

    def next_feeds(self, images: Images) -> Tensors:
        """Inputs of the stage after the last one for ``images``: the real reuse tensors."""
        last: Tensors = [{}, *self.run(images)][-1]
        return {"image": images} | handed_on(last)

    def records(self, images: Images, label: npt.NDArray[np.int32] | None) -> Records:
        """What every exit answers to every image."""
        confidence, prediction = [], []
        for part in batches(images):
            outputs = list(self.run(part))
            confidence.append(np.stack([o["confidence"] for o in outputs], axis=1))
            prediction.append(np.stack([o["class_id"] for o in outputs], axis=1))
        return Records(np.concatenate(confidence), np.concatenate(prediction), label)


def batches(images: Images) -> Iterator[Images]:
    """Consecutive parts of ``images``."""
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH]
