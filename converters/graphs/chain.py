"""Running the stages one after the other during a build: all exits, on every image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from dvt_edge.bundle.manifest import handed_on
from dvt_edge.policy.records import Records
from dvt_edge.runtime.backends.onnxruntime_cpu import open_session

Images = npt.NDArray[np.float32]
"""[n, C, S, S], normalised."""
Tensors = dict[str, npt.NDArray[Any]]
BATCH = 16


class Chain:
    """Sessions over the first stages of a cascade."""

    def __init__(self, models: Sequence[onnx.ModelProto]) -> None:
        self._sessions = [open_session(m.SerializeToString(), threads=0) for m in models]

    def run(self, images: Images | npt.NDArray[np.float16]) -> Iterator[Tensors]:
        """All outputs of stage after stage for ``images`` [n, C, S, S], in the graphs' own type."""
        handed: Tensors = {}
        for session in self._sessions:
            feeds = {"image": images, **handed}
            names = [output.name for output in session.get_outputs()]
            wanted = [value.name for value in session.get_inputs()]
            values = session.run(names, {name: feeds[name] for name in wanted})
            outputs: Tensors = dict(zip(names, values, strict=True))
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


def model_outputs(model: onnx.ModelProto, feeds: Iterable[Tensors]) -> Iterator[Tensors]:
    """All outputs of one stage for one set of inputs after another."""
    session = open_session(model.SerializeToString(), threads=0)
    names = [output.name for output in session.get_outputs()]
    wanted = [value.name for value in session.get_inputs()]
    for given in feeds:
        values = session.run(names, {name: given[name] for name in wanted})
        yield dict(zip(names, values, strict=True))


def batches(images: Images, size: int = BATCH) -> Iterator[Images]:
    """Consecutive parts of ``images``."""
    for start in range(0, len(images), size):
        yield images[start : start + size]
