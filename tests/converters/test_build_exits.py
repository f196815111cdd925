"""What the profile's ``exits`` say about confidence, from build to bundle."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.converters.build import BuildResult, build
from dvt_edge.converters.graphs.chain import Chain
from dvt_edge.errors import BundleError
from dvt_edge.policy.confidence import ConfidenceKind, fit_temperature
from dvt_edge.profile import ExitsConfig, Profile
from dvt_edge.runtime.runtime import Runtime
from tests.confidence_reference import confidence
from tests.converters.conftest import calibration_images, calibration_pixels

Profiles = Callable[..., Profile]
EVERY_EXITS = [
    {"confidence": kind, "fit_temperature": fit}
    for kind in get_args(ConfidenceKind)
    for fit in (False, True)
]


def _logits(bundle: Bundle, profile: Profile) -> list[npt.NDArray[np.float32]]:
    """[N, C] of every exit, by the stages in the bundle on all calibration images."""
    stages = [onnx.load(bundle.stage_path(i)) for i in range(3)]
    outputs = Chain(stages).run(calibration_images(profile))
    return [stage["logits"] for stage in outputs]


@pytest.mark.parametrize(
    "exits",
    [EVERY_EXITS[0], *(pytest.param(e, marks=pytest.mark.slow) for e in EVERY_EXITS[1:])],
    ids=str,
)
def test_bundle_is_what_the_exits_ask_for(
    built: BuildResult, tiny_profile: Profiles, exits: dict[str, Any]
) -> None:
    """Records hold the policy's confidence of the stages' logits, at the manifest's temperatures.

    Confidence is part of the stages, so other exits rebuild them; the same once more do not. The
    Runtime answers as the records do, and refuses a bundle of other exits.
    """
    profile = tiny_profile(exits=exits)
    result = build(profile)
    assert result.rebuilt == (exits != EVERY_EXITS[0])
    assert not build(profile).rebuilt
    assert os.listdir(profile.output.parent) == ["bundle"]
    manifest, records = result.bundle.manifest, result.bundle.records()
    assert (manifest.build_key != built.bundle.manifest.build_key) == result.rebuilt
    assert manifest.exits == ExitsConfig.model_validate(exits)
    logits = _logits(result.bundle, profile)
    assert records.label is not None
    if exits["fit_temperature"]:
        fitted = [fit_temperature(values, records.label) for values in logits]
        assert manifest.temperatures == pytest.approx(fitted, rel=1e-3)
        assert len(set(fitted)) == 3
    else:
        assert manifest.temperatures is None
    for k, temperature in enumerate(manifest.temperatures or (1.0,) * 3):
        expected = confidence(logits[k], exits["confidence"], temperature)
        np.testing.assert_allclose(records.confidence[:, k], expected, atol=1e-4)
        np.testing.assert_array_equal(records.prediction[:, k], logits[k].argmax(axis=1))
    with Runtime(profile) as runtime:
        runtime.use(runtime.replay((np.inf, np.inf, -np.inf)))
        found = [runtime.classify(image).confidences for image in calibration_pixels(profile)[::6]]
    np.testing.assert_allclose(found, records.confidence[::6], atol=1e-3)
    other = {**exits, "fit_temperature": not exits["fit_temperature"]}
    with pytest.raises(BundleError, match="built with another 'exits'"):
        Runtime(tiny_profile(exits=other))


def test_temperatures_without_labels(tiny_profile: Profiles) -> None:
    """The last exit's answers stand for the truth; temperatures move confidences, not answers."""
    profile = tiny_profile(exits={"fit_temperature": True})
    np.savez(profile.calibration.data, images=calibration_pixels(profile))
    bundle = build(profile).bundle
    logits, records = _logits(bundle, profile), bundle.records()
    fitted = [fit_temperature(values, logits[-1].argmax(axis=1)) for values in logits]
    assert bundle.manifest.temperatures == pytest.approx(fitted, rel=1e-3)
    np.testing.assert_array_equal(records.prediction, np.stack(logits, axis=1).argmax(axis=2))
    plain = np.stack([confidence(values) for values in logits], axis=1)
    assert np.abs(records.confidence - plain).max() > 0.01
    assert bundle.manifest.quantization.changed_decisions < 0.5  # both graphs got them
