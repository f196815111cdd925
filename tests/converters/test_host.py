"""The host half of a build: what it makes, and what makes it build again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import dvt_edge
from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.manifest import MANIFEST, RECORDS
from dvt_edge.converters.build import BuildResult, build
from dvt_edge.converters.graphs.chain import Chain
from dvt_edge.converters.graphs.facts import stage_spec
from dvt_edge.converters.quantizing import quantize_cascade
from dvt_edge.converters.quantizing.calibration import activation_ranges
from dvt_edge.models import Cascade, CascadeConfig
from dvt_edge.policy import Records, Solution, replay
from dvt_edge.profile import Profile
from dvt_edge.runtime.native import operator_library
from tests.converters.conftest import calibration_images, calibration_pixels, changed, files_in

Profiles = Callable[..., Profile]
Feeds = Mapping[str, npt.NDArray[np.float32]]


def _without_manifest(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {name: file for name, file in files_in(folder).items() if name != MANIFEST}


def _operators(bundle: Bundle, stage: int) -> set[str]:
    return {node.op_type for node in onnx.load(bundle.stage_path(stage)).graph.node}


def test_bundle_holds_stages_records_and_manifest(tiny_profile: Profiles, tmp_path: Path) -> None:
    built = build(tiny_profile())
    assert built.rebuilt
    assert built.bundle.folder == tmp_path / "out" / "bundle"
    names = ["manifest.json", "records.npz", "stage1.onnx", "stage2.onnx", "stage3.onnx"]
    assert sorted(os.listdir(built.bundle.folder)) == names
    assert os.listdir(tmp_path / "out") == ["bundle"]


def test_manifest_describes_the_bundle(
    built: BuildResult, tiny_profile: Profiles, tmp_path: Path
) -> None:
    profile, manifest = tiny_profile(), Bundle(built.bundle.folder).manifest
    assert manifest.files == {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in built.bundle.folder.iterdir()
        if p.name != MANIFEST
    }
    for i, stage in enumerate(manifest.stages):
        model = onnx.load(built.bundle.stage_path(i))
        assert stage == stage_spec(model, f"stage{i + 1}.onnx")
    assert manifest.schema_version == 3
    assert (manifest.input, manifest.engine) == (profile.input, profile.engine)
    assert (manifest.budget, manifest.device) == (profile.budget, "any")
    assert manifest.class_names == ("0", "1", "2", "3", "4")
    assert manifest.frame_shape == (16, 16)
    assert manifest.versions["dvt_edge"] == dvt_edge.__version__
    assert manifest.versions["onnxruntime"] == onnxruntime.__version__


def test_class_names_come_from_the_model(
    tiny_profile: Profiles,
    tiny_config: Callable[..., CascadeConfig],
    random_cascade: Callable[..., Cascade],
) -> None:
    profile = _unlabelled(tiny_profile(), 100)
    names = ("ant", "bee", "cat", "dog", "eel")
    random_cascade(tiny_config(class_names=names)).save(profile.model)
    assert build(profile).bundle.manifest.class_names == names


def test_unchanged_inputs_rebuild_nothing(built: BuildResult, tiny_profile: Profiles) -> None:
    """Nor does it matter where they lie: the bundle of ``built`` is a copy."""
    assert not built.rebuilt
    before = files_in(built.bundle.folder)
    again = build(tiny_profile())
    assert not again.rebuilt
    assert again.bundle.manifest == built.bundle.manifest
    assert files_in(built.bundle.folder) == before


def test_another_budget_rebuilds_nothing_but_is_stored(
    built: BuildResult, tiny_profile: Profiles
) -> None:
    before = _without_manifest(built.bundle.folder)
    result = build(tiny_profile(budget={"latency_ms": 7.5}))
    assert not result.rebuilt
    assert _without_manifest(built.bundle.folder) == before
    manifest = Bundle(built.bundle.folder).manifest
    assert manifest.budget.latency_ms == 7.5
    assert manifest.model_copy(update={"budget": built.bundle.manifest.budget}) == (
        built.bundle.manifest
    )


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("input", {"mean": (0.4,)}),
        ("engine", {"precision": "fp32"}),
        ("engine", {"backend": "tensorrt"}),
        ("engine", {"batch_sizes": (1, 4)}),
        ("calibration", {"samples": 50}),
        ("calibration", {"tolerance_points": 99.0}),
        ("device", {"name": "another"}),
    ],
)
def test_another_profile_rebuilds(
    built: BuildResult, tiny_profile: Profiles, section: str, values: dict[str, Any]
) -> None:
    result = build(changed(tiny_profile(), section, **values))
    assert result.rebuilt
    assert result.bundle.manifest.build_key != built.bundle.manifest.build_key
    assert len(os.listdir(built.bundle.folder.parent)) == 1


def test_another_calibration_image_rebuilds(built: BuildResult, tiny_profile: Profiles) -> None:
    profile = tiny_profile()
    with np.load(profile.calibration.data) as archive:
        images, labels = archive["images"], archive["labels"]
    images[17, 3, 3] ^= 1
    np.savez(profile.calibration.data, images=images, labels=labels)
    assert build(profile).rebuilt
    labels[17] = (labels[17] + 1) % 5
    np.savez(profile.calibration.data, images=images, labels=labels)
    assert build(profile).rebuilt
    assert not build(profile).rebuilt


def test_another_checkpoint_rebuilds(built: BuildResult, tiny_profile: Profiles) -> None:
    profile = tiny_profile()
    cascade = Cascade.load(profile.model)
    with torch.no_grad():
        cascade.get_parameter("stages.0.head.bias")[0] += 1e-3
    cascade.save(profile.model)
    assert build(profile).rebuilt


def test_damaged_bundle_is_rebuilt(built: BuildResult, tiny_profile: Profiles) -> None:
    built.bundle.stage_path(1).write_bytes(b"damaged")
    assert build(tiny_profile()).rebuilt
    onnx.checker.check_model(onnx.load(built.bundle.stage_path(1)))


def test_force_rebuilds_to_the_same_stages(built: BuildResult, tiny_profile: Profiles) -> None:
    result = build(tiny_profile(), force=True)
    assert result.rebuilt
    assert result.bundle.manifest.content_hash == built.bundle.manifest.content_hash


def _unlabelled(profile: Profile, tolerance: float) -> Profile:
    """Calibrated without labels: then the last FP32 exit is right by definition."""
    path = profile.calibration.data.with_name("unlabelled.npz")
    np.savez(path, images=calibration_pixels(profile))
    return changed(profile, "calibration", data=path, tolerance_points=tolerance)


def test_unlabelled_calibration(tiny_profile: Profiles) -> None:
    bundle = build(_unlabelled(tiny_profile(), 100.0)).bundle
    records = bundle.records()
    assert records.label is None
    assert bundle.manifest.quantization.exits[-1].accuracy_before == 1.0


def _answers(bundle: Bundle, images: npt.NDArray[np.float32]) -> tuple[Any, Any]:
    """Confidence and class of every exit, by running the stage files one after the other."""
    handed: dict[str, Any] = {}
    confidence, prediction = [], []
    for i in range(len(bundle.manifest.stages)):
        session = onnxruntime.InferenceSession(
            bundle.stage_path(i), providers=["CPUExecutionProvider"]
        )
        wanted = {value.name: value.type for value in session.get_inputs()}
        given = images.astype(np.float16 if "float16" in wanted["image"] else np.float32)
        feeds = {name: v for name, v in {"image": given, **handed}.items() if name in wanted}
        names = [value.name for value in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, feeds), strict=True))
        handed = {
            name.removeprefix("next_"): outputs[name] for name in names if name.startswith("next_")
        }
        confidence.append(outputs["confidence"])
        prediction.append(outputs["class_id"])
    return np.stack(confidence, axis=1), np.stack(prediction, axis=1)


@pytest.mark.parametrize(
    "engine",
    [
        {"backend": "onnxruntime", "precision": "int8"},
        {"backend": "onnxruntime", "precision": "fp32"},
        {"backend": "tensorrt", "precision": "int8"},
    ],
)
def test_records_are_the_answers_of_the_stages_in_the_bundle(
    tiny_profile: Profiles, engine: dict[str, str]
) -> None:
    profile = tiny_profile(engine=engine)
    bundle = build(profile).bundle
    records = bundle.records()
    confidence, prediction = _answers(bundle, calibration_images(profile))
    if engine["backend"] == "tensorrt":  # files of float16, records computed in float32
        assert np.abs(records.confidence - confidence).mean() < 0.02
        assert (records.prediction == prediction).mean() > 0.95
    else:
        np.testing.assert_allclose(records.confidence, confidence, atol=1e-4)
        np.testing.assert_array_equal(records.prediction, prediction)
    assert records.label is not None
    np.testing.assert_array_equal(records.label, np.arange(60) % 5)
    figures = bundle.manifest.quantization
    after = [(records.prediction[:, k] == records.label).mean() for k in range(3)]
    assert [e.accuracy_after for e in figures.exits] == pytest.approx(after)
    with torch.no_grad():
        exact = [
            o.logits for o in Cascade.load(profile.model)(torch.tensor(calibration_images(profile)))
        ]
    before = [float((o.argmax(-1).numpy() == records.label).mean()) for o in exact]
    assert [e.accuracy_before for e in figures.exits] == pytest.approx(before)
    exact_confidence = torch.stack([o.softmax(-1).amax(-1) for o in exact], dim=1).numpy()
    moved = float(np.abs(records.confidence - exact_confidence).max())
    assert (moved > 1e-4) == (engine["precision"] == "int8")


@pytest.mark.parametrize(("backend", "convolutions"), [("onnxruntime", 0), ("tensorrt", 2)])
def test_backend_decides_about_convolutions(
    tiny_profile: Profiles,
    tiny_config: Callable[..., CascadeConfig],
    random_cascade: Callable[..., Cascade],
    backend: str,
    convolutions: int,
) -> None:
    """Those of the ``conv`` tokenizer: stem and patches."""
    profile = _unlabelled(tiny_profile(engine={"backend": backend}), 100)
    random_cascade(tiny_config(tokenizer="conv")).save(profile.model)
    bundle = build(profile).bundle
    for i in range(3):
        graph = onnx.load(bundle.stage_path(i)).graph
        made_by = {output: node.op_type for node in graph.node for output in node.output}
        quantized = [
            node.name
            for node in graph.node
            if node.op_type == "Conv" and made_by.get(node.input[1]) == "DequantizeLinear"
        ]
        assert len(quantized) == convolutions
        assert "QuantizeLinear" in _operators(bundle, i)


def test_stages_are_calibrated_on_what_reaches_them(
    tiny_profile: Profiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On fewer images from stage to stage, with the reuse tensors of the quantized stages."""
    seen: list[list[dict[str, npt.NDArray[np.float32]]]] = []
    original = activation_ranges

    def spy(model: onnx.ModelProto, names: list[str], feeds: Iterable[Feeds]) -> dict[str, float]:
        seen.append([dict(part) for part in feeds])
        return original(model, names, seen[-1])

    def medians(graphs: object, records: Records) -> Solution:
        """Half of the images leave at each exit, untrained as the model is."""
        first = np.median(records.confidence[:, 0])
        second = np.median(records.confidence[records.confidence[:, 0] < first, 1])
        return replay(records, [1, 2, 3], [first, second, -np.inf])

    monkeypatch.setattr(quantize_cascade, "activation_ranges", spy)
    monkeypatch.setattr(quantize_cascade, "provisional_thresholds", medians)
    profile = tiny_profile()
    bundle = build(profile).bundle
    images = calibration_images(profile)
    reached = []
    for i, feeds in enumerate(seen):
        given = np.concatenate([part["image"] for part in feeds])
        rows = [int(np.abs(images - image).sum(axis=(1, 2, 3)).argmin()) for image in given]
        reached.append(set(rows))
        assert len(reached[-1]) == len(rows)
        np.testing.assert_allclose(images[rows], given, atol=1e-6)
        assert feeds[0].keys() == ({"image", "features", "relations"} if i else {"image"})
    assert reached[0] == set(range(60))
    assert reached[0] > reached[1] > reached[2]
    stages = [onnx.load(bundle.stage_path(i)) for i in range(2)]
    for i, feeds in enumerate(seen[1:], start=1):
        expected = Chain(stages[:i]).next_feeds(feeds[0]["image"])
        for name in ("features", "relations"):
            np.testing.assert_allclose(feeds[0][name], expected[name], atol=1e-5)


@pytest.mark.parametrize(("samples", "used"), [(7, 7), (60, 60), (1000, 60)])
def test_samples_are_spread_over_the_data(tiny_profile: Profiles, samples: int, used: int) -> None:
    profile = changed(tiny_profile(), "calibration", samples=samples)
    records = build(profile).bundle.records()
    assert len(records) == used
    assert records.label is not None
    if used == 7:
        np.testing.assert_array_equal(records.label, np.array([0, 10, 20, 30, 39, 49, 59]) % 5)


def test_frame_shape_is_that_of_the_images(tiny_profile: Profiles) -> None:
    profile = tiny_profile()
    folder = profile.model.with_name("images")
    folder.mkdir()
    for i, width in enumerate((20, 30, 40)):
        Image.new("RGB", (width, 24), (i, 0, 0)).save(folder / f"{i}.png")
    bundle = build(changed(profile, "calibration", data=folder)).bundle
    assert bundle.manifest.frame_shape == (24, 30)
    assert len(bundle.records()) == 3


def test_colour_calibration_files_are_rgb(
    tiny_profile: Profiles,
    tiny_config: Callable[..., CascadeConfig],
    random_cascade: Callable[..., Cascade],
) -> None:
    """Files are read as RGB, whatever order the profile promises for frames."""
    profile = tiny_profile()
    random_cascade(tiny_config(channels=3)).save(profile.model)
    red = np.zeros((4, 16, 16, 3), np.uint8)
    red[..., 0] = [[[50]], [[100]], [[150]], [[200]]]
    np.savez(profile.calibration.data, images=red, labels=np.arange(4))
    values = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "color_order": "bgr"}
    profile = changed(changed(profile, "input", **values), "engine", precision="fp32")
    records = build(profile).bundle.records()
    images = torch.from_numpy(red.transpose(0, 3, 1, 2)).float()
    with torch.no_grad():
        expected = Cascade.load(profile.model)((images / 255 - 0.5) / 0.25)
    confidence = torch.stack([o.logits.softmax(-1).amax(-1) for o in expected], dim=1)
    np.testing.assert_allclose(records.confidence, confidence.numpy(), atol=1e-4)


def test_progress_ends_complete(tiny_profile: Profiles) -> None:
    calls: list[Any] = []
    build(tiny_profile(), lambda *call: calls.append(call))
    names = list(dict.fromkeys(what for what, *_ in calls))
    kinds = ["calibration images", "stage graphs", "quantization"]
    if operator_library.unavailable() is None:
        kinds.append("native operators")
    assert names == kinds
    for what in kinds:
        steps = [(done, total) for name, done, total, *_ in calls if name == what]
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert steps[-1][0] == steps[-1][1]


def test_demo_bundle_keeps_its_accuracy(demo_bundle: Path) -> None:
    """The shipped checkpoint, quantized: every exit close to FP32, decisions mostly unchanged."""
    figures = Bundle(demo_bundle).manifest.quantization
    assert figures.precision == "int8"
    assert max(e.accuracy_before - e.accuracy_after for e in figures.exits) <= 0.03
    assert figures.changed_decisions < 0.1
    assert figures.exits[-1].accuracy_after > figures.exits[0].accuracy_after
    assert (demo_bundle / RECORDS).stat().st_size > 0


def test_unlabelled_images_and_groups(tiny_profile: Profiles, tmp_path: Path) -> None:
    """Records of the field beside those of the calibration, each with its clips; both are part of
    the key."""
    pixels = calibration_pixels(tiny_profile())
    labels, clips = np.arange(60) % 5, np.arange(60) // 4
    np.savez(tmp_path / "clips.npz", images=pixels, labels=labels, groups=clips)
    field = tmp_path / "field"
    for number, picture in enumerate(pixels[:30]):
        path = field / f"day{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    calibration = {
        "data": tmp_path / "clips.npz",
        "samples": 60,
        "groups": r"^(day\d)/",
        "unlabelled": field,
    }
    profile = tiny_profile(calibration=calibration)
    built = build(profile)
    records, found = built.bundle.records(), built.bundle.unlabelled_records()
    assert records.group is not None
    assert [records.group.tolist().index(g) for g in records.group] == (clips * 4).tolist()
    assert found is not None
    assert found.label is None
    assert found.group is not None
    assert np.bincount(found.group).tolist() == [10, 10, 10]
    rows = [int(path.stem) for path in sorted(field.rglob("*.png"))]
    np.testing.assert_array_equal(found.prediction, records.prediction[rows])
    np.testing.assert_allclose(found.confidence, records.confidence[rows], atol=1e-6)
    assert not build(profile).rebuilt
    next(field.rglob("*.png")).unlink()
    assert build(profile).rebuilt
    assert build(tiny_profile(calibration=calibration | {"unlabelled": None})).rebuilt
    assert Bundle(profile.output).unlabelled_records() is None
