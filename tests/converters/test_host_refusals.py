"""What the host half of a build refuses, and that a failure leaves the old bundle whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from dvt_edge.bundle.manifest import QuantizationFigures
from dvt_edge.converters import host
from dvt_edge.converters.build import BuildResult, build
from dvt_edge.converters.graphs.stage_graph import Target, stage_graph_from_cascade
from dvt_edge.converters.quantizing.quantize_cascade import figures
from dvt_edge.errors import BuildError, BundleError, CheckpointError, DataError
from dvt_edge.models import Cascade
from dvt_edge.profile import ExitsConfig, Profile
from tests.converters.conftest import changed, files_in

Profiles = Callable[..., Profile]


def test_nan_in_the_weights_is_refused(built: BuildResult, tiny_profile: Profiles) -> None:
    profile = tiny_profile()
    before = files_in(built.bundle.folder)
    cascade = Cascade.load(profile.model)
    with torch.no_grad():
        cascade.get_parameter("stages.1.blocks.0.mlp.fc1.weight")[0, 0] = float("nan")
    cascade.save(profile.model)
    with pytest.raises(BuildError, match=r"stage 2: .* may hold NaN"):
        build(profile)
    assert files_in(built.bundle.folder) == before
    assert os.listdir(built.bundle.folder.parent) == ["bundle"]


def test_graph_that_differs_from_pytorch_is_refused(
    tiny_profile: Profiles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def wrong(cascade: Cascade, index: int, exits: ExitsConfig, target: Target) -> onnx.ModelProto:
        with torch.no_grad():
            bias = cascade.get_parameter(f"stages.{index}.head.bias")
            bias.add_(1e-2)
            graph = original(cascade, index, exits, target)
            bias.sub_(1e-2)
        return graph

    original = stage_graph_from_cascade
    monkeypatch.setattr(host, "stage_graph_from_cascade", wrong)
    with pytest.raises(BuildError, match=r"stage 1: the graph's logits differ from PyTorch's"):
        build(tiny_profile())
    assert not (tmp_path / "out").exists()


def test_a_field_that_is_not_grouped_as_the_calibration_images_are(
    tiny_profile: Profiles, tmp_path: Path
) -> None:
    """Its frames would count as drawn one by one."""
    with np.load(tmp_path / "calibration.npz") as archive:
        np.savez(tmp_path / "clips.npz", groups=np.arange(60) // 4, **archive)
        np.savez(tmp_path / "field.npz", images=archive["images"])
    calibration = {"data": tmp_path / "clips.npz", "unlabelled": tmp_path / "field.npz"}
    with pytest.raises(DataError, match=r"field\.npz: .*; give calibration\.groups for a folder"):
        build(tiny_profile(calibration=calibration))


def test_a_field_whose_paths_do_not_match(tiny_profile: Profiles, tmp_path: Path) -> None:
    with np.load(tmp_path / "calibration.npz") as archive:
        np.savez(tmp_path / "clips.npz", groups=np.arange(60) // 4, **archive)
        for number in range(2):
            Image.fromarray(archive["images"][number]).save(tmp_path / f"{number}.png")
    calibration = {"data": tmp_path / "clips.npz", "unlabelled": tmp_path, "groups": "(day)"}
    with pytest.raises(DataError, match=r"0\.png: calibration\.groups '\(day\)' does not match"):
        build(tiny_profile(calibration=calibration))


Old = dict[str, tuple[bytes, int]]


@pytest.fixture(params=["old bundle", "no bundle"])
def old(request: pytest.FixtureRequest) -> Old:
    """The files of a bundle that a failing build must not touch; empty where there is none."""
    if request.param == "no bundle":
        return {}
    built: BuildResult = request.getfixturevalue("built")
    return files_in(built.bundle.folder)


def _check_old(output: Path, old: Old) -> None:
    """The old bundle is whole and nothing lies beside it."""
    assert (os.listdir(output) if output.exists() else []) == (["bundle"] if old else [])
    if old:
        assert files_in(output / "bundle") == old


def _interrupt(*args: object, **kwargs: object) -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["calibration images", "stage graphs", "quantization"])
def test_interrupted_computation_leaves_everything(
    old: Old, tiny_profile: Profiles, tmp_path: Path, step: str
) -> None:
    def progress(what: str, done: float, total: float, remark: str = "") -> None:
        if what == step and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tiny_profile(), progress, force=True)
    _check_old(tmp_path / "out", old)


@pytest.mark.parametrize("step", ["write_records", "file_sha256", "Manifest", "stage_spec"])
def test_interrupted_writing_leaves_everything(
    tiny_profile: Profiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    old: Old,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(host, step, _interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(tiny_profile(), force=True)
    _check_old(tmp_path / "out", old)
    assert build(tiny_profile()).rebuilt == (not old)


def test_folder_of_something_else_is_not_replaced(tiny_profile: Profiles) -> None:
    profile = tiny_profile()
    profile.output.mkdir(parents=True)
    (profile.output / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(BundleError, match="holds something else than a bundle"):
        build(profile)
    assert os.listdir(profile.output) == ["thesis.tex"]
    assert os.listdir(profile.output.parent) == ["bundle"]


@pytest.mark.parametrize("place", ["/", ".", "model.safetensors", "model.safetensors/bundle"])
def test_output_is_looked_at_before_any_work(
    tiny_profile: Profiles, tmp_path: Path, place: str
) -> None:
    """The system, the profile's own folder, a file, below a file."""
    done: list[str] = []
    with pytest.raises(BundleError, match="choose another output"):
        build(tiny_profile(output=tmp_path / place), lambda what, *rest: done.append(what))
    assert not done


def _empty_folder(profile: Profile) -> Profile:
    folder = profile.model.with_name("images")
    folder.mkdir()
    return changed(profile, "calibration", data=folder)


def _without_calibration(profile: Profile) -> Profile:
    return changed(profile, "calibration", data=profile.model.with_name("nowhere"))


def _labels_of_another_model(profile: Profile) -> Profile:
    with np.load(profile.calibration.data) as archive:
        images, labels = archive["images"], archive["labels"]
    np.savez(profile.calibration.data, images=images, labels=labels + 1)
    return profile


def _classes_of_another_model(profile: Profile) -> Profile:
    cascade = Cascade.load(profile.model)
    names = ("a", "b", "c", "d", "e")
    Cascade(cascade.config.model_copy(update={"class_names": names})).save(profile.model)
    folder = profile.model.with_name("images")
    (folder / "zebra").mkdir(parents=True)
    Image.new("L", (16, 16)).save(folder / "zebra" / "1.png")
    return changed(profile, "calibration", data=folder)


def _damaged_calibration_image(profile: Profile) -> Profile:
    folder = profile.model.with_name("images")
    folder.mkdir()
    Image.new("L", (16, 16)).save(folder / "1.png")
    (folder / "2.png").write_bytes(b"no image")
    return changed(profile, "calibration", data=folder)


def _images_beside_folders(profile: Profile) -> Profile:
    folder = profile.model.with_name("images")
    (folder / "zebra").mkdir(parents=True)
    for path in (folder / "zebra" / "1.png", folder / "2.png"):
        Image.new("L", (16, 16)).save(path)
    return changed(profile, "calibration", data=folder)


def _a_class_missing(profile: Profile) -> Profile:
    """Of a model without names: which one, nobody can say."""
    folder = profile.model.with_name("images")
    for name in "bcde":
        (folder / name).mkdir(parents=True)
        Image.new("L", (16, 16)).save(folder / name / "1.png")
    return changed(profile, "calibration", data=folder)


def _without_checkpoint(profile: Profile) -> Profile:
    profile.model.unlink()
    return profile


def _truncated_checkpoint(profile: Profile) -> Profile:
    profile.model.write_bytes(profile.model.read_bytes()[:-100])
    return profile


def _pickled_checkpoint(profile: Profile) -> Profile:
    torch.save({"weight": torch.zeros(3)}, profile.model)
    return profile


def _one_answer_for_all(profile: Profile) -> Profile:
    cascade = Cascade.load(profile.model)
    with torch.no_grad():
        for stage in cascade.stages:
            stage.get_parameter("head.bias")[0] += 100
    cascade.save(profile.model)
    return profile


def _another_size(profile: Profile) -> Profile:
    return changed(profile, "input", crop=14)


def _another_colour(profile: Profile) -> Profile:
    return changed(profile, "input", mean=(0.5,) * 3, std=(0.25,) * 3, color_order="rgb")


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (_empty_folder, DataError, "images: holds no images"),
        (_without_calibration, DataError, "nowhere: no such folder"),
        (_labels_of_another_model, DataError, "classes run from 1 to 5, the model has 5"),
        (_classes_of_another_model, DataError, "subfolder 'zebra' is not one of the 5 classes"),
        (_damaged_calibration_image, DataError, "2.png: not a readable image"),
        (_without_checkpoint, CheckpointError, "model.safetensors: no readable checkpoint"),
        (_truncated_checkpoint, CheckpointError, "model.safetensors: truncated"),
        (_pickled_checkpoint, CheckpointError, "model.safetensors: this is a pickle"),
        (_one_answer_for_all, BuildError, "is 20.0 %, where guessing gives 20.0 %; check input"),
        (_images_beside_folders, DataError, "images: holds images ('2.png') beside folders"),
        (_a_class_missing, DataError, "subfolder 'b' is not one of the 5 classes (0, 1, 2, 3, 4)"),
        (_another_size, CheckpointError, "takes 1x16x16, the profile's input gives 1x14x14"),
        (_another_colour, CheckpointError, "takes 1x16x16, the profile's input gives 3x16x16"),
    ],
)
def test_unusable_inputs_are_named_and_nothing_is_written(
    tiny_profile: Profiles,
    tmp_path: Path,
    spoil: Callable[[Profile], Profile],
    error: type[Exception],
    message: str,
    old: Old,
) -> None:
    profile = spoil(tiny_profile())
    with pytest.raises(error) as caught:
        build(profile)
    assert message in str(caught.value)
    _check_old(tmp_path / "out", old)


def test_labels_of_one_class_are_refused(tiny_profile: Profiles) -> None:
    """One image, or many of one class: thresholds would say nothing about the others."""
    profile = changed(tiny_profile(), "calibration", samples=1)
    with pytest.raises(DataError, match="of class 0"):
        build(profile)
    assert not profile.output.exists()


def test_decisions_that_do_not_last_are_refused(
    tiny_profile: Profiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flipped(*given: Any) -> QuantizationFigures:
        return figures(*given).model_copy(update={"changed_decisions": 0.9})

    monkeypatch.setattr(host, "figures", flipped)
    with pytest.raises(BuildError, match=r"sends 90 % of the calibration images to another exit"):
        build(tiny_profile())
    assert not tiny_profile().output.exists()
