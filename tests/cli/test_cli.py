"""The command line in process: exit codes, one-line errors, and what is printed."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dvt_edge as package
from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.manifest import MANIFEST
from dvt_edge.requirements import HOST_MODULES
from dvt_edge.runtime.runtime import Runtime
from tests.cli.conftest import Run, Write, error_line
from tests.conftest import edit_manifest, unknown_dds


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["classify", "--help"]])
def test_help(dvt_edge: Run, arguments: list[str]) -> None:
    """Help is no error."""
    result = dvt_edge(*arguments)
    assert result.code == 0
    assert "Usage:" in result.out


def test_version(dvt_edge: Run) -> None:
    """The version is the package's."""
    result = dvt_edge("--version")
    assert (result.code, result.out.split()[-1]) == (0, package.__version__)


def test_help_names_every_command(dvt_edge: Run) -> None:
    """Five commands."""
    for command in ("build", "profile", "classify", "train", "inspect", "import"):
        assert f"\n  {command} " in dvt_edge("--help").out


@pytest.mark.parametrize(
    "arguments",
    [
        ["clasify"],
        ["--no-such-option"],
        ["classify"],
        ["classify", "image.png"],
        ["classify", "--profile", "p.yaml"],
        ["classify", "--profile", ".", "image.png"],
        ["profile", "--profile", "p.yaml", "--duration", "soon"],
        ["profile", "--profile", "p.yaml", "--duration", "0.4"],
        ["profile", "--profile", "p.yaml", "--pace", "-1"],
        ["profile", "--profile", "p.yaml", "--pace", "nan"],
        ["profile", "--profile", "p.yaml", "--pace", "fast"],
        ["profile", "--profile", "p.yaml", "--pace", "none", "--solve-for", "paced"],
        ["build"],
        ["inspect"],
        ["inspect", "a", "b"],
        ["train"],
    ],
    ids=" ".join,
)
def test_wrong_command_lines(dvt_edge: Run, arguments: list[str]) -> None:
    """The exit code is 2, and the usage is shown on standard error."""
    result = dvt_edge(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert "Usage:" in result.err


@pytest.mark.parametrize("command", ["build", "profile", "classify", "train"])
def test_missing_configuration(dvt_edge: Run, tmp_path: Path, command: str) -> None:
    """A YAML file that does not exist is named in one line."""
    option = "--config" if command == "train" else "--profile"
    extra = ["image.png"] if command == "classify" else []
    message = error_line(dvt_edge(command, option, tmp_path / "gone.yaml", *extra))
    assert "gone.yaml: no such file" in message


@pytest.mark.parametrize("command", ["build", "profile", "classify"])
def test_typo_in_the_profile(dvt_edge: Run, write_profile: Write, command: str) -> None:
    """File, line, key and the nearest key."""
    path = write_profile(budget={"latency": 1.0})
    line = path.read_text(encoding="utf-8").splitlines().index("  latency: 1.0") + 1
    extra = ["image.png"] if command == "classify" else []
    message = error_line(dvt_edge(command, "--profile", path, *extra))
    assert (
        f"profile.yaml:{line}: budget.latency: unknown key; did you mean 'latency_ms'?" in message
    )


def test_keyboard_interrupt(
    dvt_edge: Run, write_profile: Write, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends with 130 and without a traceback."""

    def interrupt(*arguments: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Runtime, "classify_each", interrupt)
    result = dvt_edge("classify", "--profile", write_profile(), images)
    assert result.code == 130
    assert "interrupted" in result.err
    assert "Traceback" not in result.err


# classify


def test_classify_folder(
    dvt_edge: Run, write_profile: Write, own_bundle: Path, images: Path
) -> None:
    """One line an image in sorted order, then a summary that counts what the folders say."""
    result = dvt_edge("classify", "--profile", write_profile(), images)
    assert (result.code, result.err) == (0, "")
    *lines, summary, promise = result.out.splitlines()
    assert promise.startswith("Promised: mean latency of ")
    paths = sorted(images.rglob("*.png"))
    assert [line.split("  ")[0] for line in lines] == [str(path) for path in paths]
    for line in lines:
        _, label, confidence, stage, latency = line.split("  ")
        assert label in Bundle(own_bundle).manifest.class_names
        assert confidence.endswith(" %")
        assert stage in ("exit 1", "exit 2", "exit 3")
        assert latency.endswith(" ms")
    right = sum(line.split("  ")[1] == p.parent.name for line, p in zip(lines, paths, strict=True))
    assert summary.startswith("4 images; mean ")
    assert f"{100 * right / 4:.2f} % match their folder" in summary


def test_classify_json(dvt_edge: Run, write_profile: Write, images: Path) -> None:
    """One object an image, nothing else on standard output; the values are the library's."""
    path = write_profile()
    result = dvt_edge("classify", "--json", "--profile", path, images)
    assert (result.code, result.err) == (0, "")
    found = [json.loads(line) for line in result.out.splitlines()]
    assert [entry["path"] for entry in found] == [str(p) for p in sorted(images.rglob("*.png"))]
    with Runtime(path) as runtime:
        names = runtime.bundle.manifest.class_names
        for entry in found:
            p = runtime.classify(np.asarray(Image.open(entry["path"])))
            assert entry["class_id"] == p.class_id
            assert entry["label"] == p.label == names[entry["class_id"]]
            assert entry["confidence"] == pytest.approx(p.confidence, abs=1e-5)
            assert entry["exit_stage"] == p.exit_stage
            assert len(entry["stage_latency_ms"]) == p.exit_stage
            assert entry["latency_ms"] >= entry["preprocess_ms"] + sum(entry["stage_latency_ms"])


def test_classify_files_and_stdin(
    dvt_edge: Run, write_profile: Write, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files, a list on standard input (blank lines are nothing) and folders, in that order."""
    paths = sorted(images.rglob("*.png"))
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{paths[1]}\n\n  {paths[0]}  \n"))
    result = dvt_edge(
        "classify", "--json", "--profile", write_profile(), paths[3], "-", images / "sandal"
    )
    assert result.code == 0
    expected = [paths[3], paths[1], paths[0], paths[0], paths[1]]
    assert [json.loads(line)["path"] for line in result.out.splitlines()] == [
        str(path) for path in expected
    ]


def test_classify_color_files_are_rgb(
    dvt_edge: Run, write_profile: Write, tmp_path: Path, samples: Path
) -> None:
    """Files are decoded to RGB; they are not taken for OpenCV's BGR."""
    scenes = sorted((samples / "demo" / "scenes" / "test").rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(p)) for p in scenes[:9:4]], axis=2)
    Image.fromarray(pixels).save(tmp_path / "colour.png")
    path = write_profile()
    found = json.loads(
        dvt_edge("classify", "--json", "--profile", path, tmp_path / "colour.png").out
    )
    with Runtime(path) as runtime:
        right = runtime.classify(pixels, color_order="rgb").confidence
        assert right != pytest.approx(runtime.classify(pixels).confidence, abs=1e-4)
    assert found["confidence"] == pytest.approx(right, abs=1e-5)


@pytest.mark.parametrize("data", [b"no image", unknown_dds()], ids=["garbage", "unknown kind"])
@pytest.mark.parametrize("as_json", [True, False], ids=["json", "text"])
def test_corrupt_image_is_reported(
    dvt_edge: Run, write_profile: Write, images: Path, as_json: bool, data: bytes
) -> None:
    """The bad image gets one line on standard error, the others are classified, the code is 1."""
    bad = images / "sandal" / "00bad.png"
    bad.write_bytes(data)
    flag = ["--json"] if as_json else []
    result = dvt_edge("classify", *flag, "--profile", write_profile(), images)
    assert result.code == 1
    assert result.err.startswith(f"error: {bad}: not a readable image")
    assert result.err.count("\n") == 1
    lines = result.out.splitlines()
    assert str(bad) not in result.out
    if as_json:
        assert len([json.loads(line) for line in lines]) == 4
    else:
        assert len(lines) == 6
        assert lines[-2].endswith("1 failed")


def test_missing_image(dvt_edge: Run, write_profile: Write, images: Path) -> None:
    """A path that does not exist is reported like a corrupt one."""
    good = next(images.rglob("*.png"))
    result = dvt_edge("classify", "--json", "--profile", write_profile(), images / "gone.png", good)
    assert result.code == 1
    assert f"{images / 'gone.png'}: no such file" in result.err
    assert json.loads(result.out)["path"] == str(good)


def test_folder_without_images(dvt_edge: Run, write_profile: Write, tmp_path: Path) -> None:
    """Nothing to classify is not success."""
    (tmp_path / "empty").mkdir()
    message = error_line(dvt_edge("classify", "--profile", write_profile(), tmp_path / "empty"))
    assert "empty: holds no images" in message


def test_classify_without_bundle(
    dvt_edge: Run, write_profile: Write, images: Path, tmp_path: Path
) -> None:
    """The message says which command makes one."""
    path = write_profile(output=str(tmp_path / "nothing"))
    message = error_line(dvt_edge("classify", "--profile", path, images))
    assert "no bundle here" in message
    assert "dvt-edge build --profile FILE" in message


def test_classify_with_changed_bundle(
    dvt_edge: Run, write_profile: Write, own_bundle: Path, images: Path
) -> None:
    """A changed stage is refused by its SHA-256."""
    with (own_bundle / "stage3.onnx").open("ab") as file:
        file.write(b"x")
    message = error_line(dvt_edge("classify", "--profile", write_profile(), images))
    assert "stage3.onnx: changed since the build (SHA-256" in message
    assert "rebuild with 'dvt-edge build'" in message


def test_classify_with_small_budget(dvt_edge: Run, write_profile: Write, images: Path) -> None:
    """A budget below the first exit's cost: what is possible is named."""
    path = write_profile(budget={"latency_ms": 0.5})
    message = error_line(dvt_edge("classify", "--profile", path, images))
    assert "the smallest possible is 1 ms, with an accuracy of " in message


# inspect


def test_inspect_json(dvt_edge: Run, own_bundle: Path) -> None:
    """The manifest, as one JSON object, and what follows from it."""
    result = dvt_edge("inspect", "--json", own_bundle)
    assert (result.code, result.err) == (0, "")
    values = json.loads(result.out)
    manifest = json.loads((own_bundle / MANIFEST).read_text(encoding="utf-8"))
    assert {name: values[name] for name in manifest} == manifest
    assert values.keys() - manifest.keys() == {"bytes_resident", "certificate"}


def test_inspect_text(dvt_edge: Run, own_bundle: Path) -> None:
    """A table of the stages; brackets in the device's name are no markup."""
    edit_manifest(own_bundle, lambda m: m.update(device="board [rev b] [/x]"))
    result = dvt_edge("inspect", own_bundle)
    assert (result.code, result.err) == (0, "")
    assert "[rev b] [/x]" in " ".join(result.out.split())
    assert "next_features" in result.out
    assert "\x1b" not in result.out, "colours belong on a terminal"


def test_inspect_no_bundle(dvt_edge: Run, tmp_path: Path) -> None:
    """A folder that is no bundle."""
    assert "no bundle here" in error_line(dvt_edge("inspect", tmp_path))


def test_inspect_damaged_manifest(dvt_edge: Run, own_bundle: Path) -> None:
    """A manifest that is none."""
    (own_bundle / MANIFEST).write_text("{\n}\n", encoding="utf-8")
    assert "not a manifest of schema 3" in error_line(dvt_edge("inspect", own_bundle))


# build and train: what the converters and the training do has tests of its own


def test_build_that_changes_nothing(dvt_edge: Run, write_profile: Write, own_bundle: Path) -> None:
    """The same inputs rebuild nothing; another budget is only written down."""
    before = (own_bundle / "stage1.onnx").stat().st_mtime_ns
    result = dvt_edge("build", "--json", "--profile", write_profile())
    assert (result.code, result.err) == (0, "")
    values = json.loads(result.out)
    assert values["rebuilt"] is False
    assert values["bundle"] == str(own_bundle)
    assert len(values["exits"]) == 3
    assert (own_bundle / "stage1.onnx").stat().st_mtime_ns == before
    assert Bundle(own_bundle).manifest.budget.latency_ms == 2.0


def test_build_without_checkpoint(dvt_edge: Run, write_profile: Write, tmp_path: Path) -> None:
    """A missing checkpoint is named before anything is written."""
    path = write_profile(model=str(tmp_path / "gone.safetensors"), output=str(tmp_path / "new"))
    assert "gone.safetensors" in error_line(dvt_edge("build", "--profile", path))
    assert not (tmp_path / "new").exists()


def test_build_without_calibration(dvt_edge: Run, write_profile: Write, tmp_path: Path) -> None:
    """An empty calibration folder is named, and nothing is written."""
    (tmp_path / "none").mkdir()
    path = write_profile(calibration={"data": str(tmp_path / "none")}, output=str(tmp_path / "new"))
    assert "none: holds no images" in error_line(dvt_edge("build", "--profile", path))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("build", "the host half of a build needs torch, onnx, safetensors"),
        ("train", "'dvt-edge train' needs torch, onnx, safetensors"),
    ],
)
def test_without_torch(
    dvt_edge: Run, write_profile: Write, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    """Without the export extra the message names what to install."""
    for module in HOST_MODULES:
        monkeypatch.setitem(sys.modules, module, None)
    option = "--config" if command == "train" else "--profile"
    error = error_line(dvt_edge(command, option, write_profile()))
    assert message in error
    assert "pip install 'dvt-edge[export]'" in error


def test_main_exits_with_the_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The console script's entry point hands the code to the shell."""
    from dvt_edge.cli import main

    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(tmp_path)])
    assert caught.value.code == 1
    shutil.rmtree(tmp_path)
    monkeypatch.setattr("sys.argv", ["dvt-edge", "--version"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
