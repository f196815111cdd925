"""Whether what a build would write makes sense: answers are no guesses, decisions last."""

from __future__ import annotations

import math

import numpy as np

from dvt_edge.errors import BuildError
from dvt_edge.policy.records import Records

LEAST_IMAGES = 30
"""Fewer say nothing."""
SURE_ERRORS = 2.0
"""Standard errors of guessing that top-1 must lie above it."""
MOST_LIKE_GUESSING = 0.25
"""Or so far on the way from guessing to always right: of rare classes a few images are too few for
the first."""
MOST_CHANGED_DECISIONS = 0.5
"""Share of images that quantization may send to another exit."""


def check_plausible(records: Records, changed_decisions: float) -> None:
    """Look at what the finished stages answered to the calibration images.

    ``changed_decisions`` is the share of them, 0..1, that leave at another exit than with the FP32
    graphs. Raises :class:`~dvt_edge.errors.BuildError` where the best exit's top-1 is no better
    than guessing, as far as so many labels can tell, and where most decisions change.
    """
    count = len(records)
    if count < LEAST_IMAGES:
        return
    if records.label is not None:
        best = int(records.accuracy.argmax())
        accuracy, guess = float(records.accuracy[best]), _guessing(records, best)
        noise = math.sqrt(guess * (1 - guess) / count)
        if accuracy - guess < min(SURE_ERRORS * noise, MOST_LIKE_GUESSING * (1 - guess)):
            raise BuildError(
                f"top-1 on the calibration images is {100 * accuracy:.1f} %, where guessing gives "
                f"{100 * guess:.1f} %; check input.mean and input.std (of pixel values scaled to "
                "0..1) against the training's, and that the images' classes are the model's"
            )
    if changed_decisions > MOST_CHANGED_DECISIONS:
        raise BuildError(
            f"quantization sends {100 * changed_decisions:.0f} % of the calibration images to "
            "another exit; calibrate on more or more typical images, or set engine.precision to "
            "fp32 (ONNX Runtime) or fp16 (TensorRT)"
        )


def _guessing(records: Records, exit_: int) -> float:
    """Top-1 that the answers of ``exit_`` would have if they had nothing to do with the images: one
    class for all is right as often as that class comes."""
    assert records.label is not None
    classes = 1 + max(int(records.label.max()), int(records.prediction[:, exit_].max()))
    shares = (
        np.bincount(part, minlength=classes) / len(records)
        for part in (records.label, records.prediction[:, exit_])
    )
    return float(np.prod(list(shares), axis=0).sum())
