"""Activation ranges for INT8, from streaming histograms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import onnx

from dvt_edge.converters.graphs.chain import open_graph
from dvt_edge.converters.quantizing.insert_qdq import INT8_MAX

BINS = 2048
_CANDIDATES = np.linspace(0.2, 1.0, 81)

Feeds = Mapping[str, npt.NDArray[np.float32]]


class MagnitudeHistogram:
    """How often |x| falls into each of :data:`BINS` equal bins; the range doubles as needed."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS)
        self.limit = 0.0

    def add(self, values: npt.NDArray[np.float32]) -> None:
        magnitude = np.abs(values).ravel()
        peak = float(magnitude.max(initial=0.0))
        if self.limit == 0:
            self.limit = peak
        while peak > self.limit > 0:
            self.counts = np.append(self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2))
            self.limit *= 2
        if self.limit > 0:
            self.counts += np.histogram(magnitude, BINS, (0, self.limit))[0]

    def clipping_value(self) -> float:
        """The symmetric range with the least mean squared error in INT8; 1 if all were zero."""
        if self.limit == 0:
            return 1.0
        centres = (np.arange(BINS) + 0.5) * self.limit / BINS
        used = centres[np.flatnonzero(self.counts)[-1]] + self.limit / BINS / 2
        errors = []
        for clip in _CANDIDATES * used:
            step = clip / INT8_MAX
            rounded = np.minimum(np.rint(centres / step), INT8_MAX) * step
            errors.append(float(self.counts @ (centres - rounded) ** 2))
        return float(_CANDIDATES[int(np.argmin(errors))] * used)


def activation_ranges(
    model: onnx.ModelProto, names: Iterable[str], batches: Iterable[Feeds]
) -> dict[str, float]:
    """Clipping value of every activation in ``names`` over all ``batches`` of inputs."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    histograms = {name: MagnitudeHistogram() for name in names}
    given = {value.name for value in model.graph.input}
    inner = [name for name in histograms if name not in given]
    for name in inner:
        tapped.graph.output.add().name = name
    session = open_graph(tapped)
    for feeds in batches:
        values = {name: value for name, value in feeds.items() if name in given}
        if inner:  # without names, ONNX Runtime computes every output
            values |= zip(inner, session.run(inner, values), strict=True)
        for name, histogram in histograms.items():
            histogram.add(values[name])
    return {name: histogram.clipping_value() for name, histogram in histograms.items()}
