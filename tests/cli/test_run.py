"""``dvt-edge run`` on recordings and cameras, in process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from dvt_edge.app.replay import read_answers
from dvt_edge.cli import run as run_cli
from tests.app.conftest import check_sum, objects, write_recording
from tests.cli.conftest import Result, Run, Write, error_line

Recorded = Callable[..., str]


@pytest.fixture
def dvt_edge(capfd: pytest.CaptureFixture[str]) -> Run:
    """As elsewhere, but it also sees what is written to the descriptor itself."""

    def call(*arguments: object) -> Result:
        code = run_cli([str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return call


@pytest.fixture
def recorded(tmp_path: Path, samples: Path) -> Recorded:
    """:func:`~tests.app.conftest.write_recording` to the test's folder."""
    return partial(write_recording, tmp_path / "recording", samples)


def test_summary(dvt_edge: Run, write_profile: Write, recorded: Recorded) -> None:
    """For people, on standard output."""
    source = recorded(20)
    result = dvt_edge("run", "--profile", write_profile(), "--source", source)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].startswith(f"{source}: 20 frames in ")
    assert "20 answered, 0 dropped, 0 failed; ended by the camera's end" in lines[0]
    assert "fps; latency mean " in lines[1]
    assert lines[2].startswith("exit 1 ")
    assert lines[3].startswith("Promised: mean latency of 2 ms")


def test_json(dvt_edge: Run, write_profile: Write, recorded: Recorded) -> None:
    """One object on standard output, nothing else."""
    source = recorded(20)
    result = dvt_edge("run", "--json", "--profile", write_profile(), "--source", source)
    assert result.code == 0
    (summary,) = objects(result.out)
    check_sum(summary)
    assert (summary["answered"], summary["ended_by"]) == (20, "source")
    assert summary["promise"]["state"] in ("HOLDS", "BROKEN", "SUSPENDED", "UNKNOWN")
    (camera,) = summary["cameras"]
    assert camera["source"] == source
    assert sum(camera["exits"]) == 20
    assert camera["latency_ms"]["p50"] <= camera["latency_ms"]["p99"]
    assert summary["outputs"] == {}


def test_jsonl_on_standard_output(dvt_edge: Run, write_profile: Write, recorded: Recorded) -> None:
    """Answers, events and the summary are JSON; what is for people is on standard error."""
    arguments = ("--profile", write_profile(), "--source", recorded(20), "--jsonl", "-")
    result = dvt_edge("run", *arguments)
    assert result.code == 0
    answers = [values for values in objects(result.out) if "event" not in values]
    assert [values["seq"] for values in answers] == list(range(20))
    assert "20 answered" in result.err
    *lines, summary = objects(dvt_edge("run", "--json", *arguments).out)
    assert summary["outputs"]["jsonl"]["lines"] == len(lines)


def test_frames_that_are_refused(dvt_edge: Run, write_profile: Write, recorded: Recorded) -> None:
    """They are counted, noted once, and the others are answered; as with images, the exit code
    says so."""
    source = recorded(20, bad=(3, 4, 11))
    result = dvt_edge("run", "--json", "--profile", write_profile(), "--source", source)
    assert result.code == 1
    (summary,) = objects(result.out)
    check_sum(summary)
    assert (summary["answered"], summary["failed"], summary["dropped"]) == (17, 3, 0)
    assert result.err.count("a frame has shape") == 1


def test_a_camera_that_fails_on_the_way(
    dvt_edge: Run, write_profile: Write, recorded: Recorded, tmp_path: Path
) -> None:
    """What was answered until then is summed up, and the error is one line."""
    source = recorded(5, bad=(3,))
    (tmp_path / "recording" / "bad.png").unlink()
    result = dvt_edge("run", "--json", "--profile", write_profile(), "--source", source)
    assert result.code == 1
    (summary,) = objects(result.out)
    assert (summary["answered"], summary["ended_by"]) == (3, "error")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert "bad.png: cannot be read" in result.err


def test_max_frames(dvt_edge: Run, write_profile: Write, recorded: Recorded) -> None:
    arguments = ("--json", "--profile", write_profile(), "--source", recorded(20))
    (summary,) = objects(dvt_edge("run", *arguments, "--max-frames", 7).out)
    assert (summary["answered"], summary["ended_by"]) == (7, "frames")


def test_duration(dvt_edge: Run, write_profile: Write, recorded: Recorded) -> None:
    """A camera that goes on is stopped; what it passed over is counted."""
    arguments = ("--json", "--profile", write_profile(), "--source", recorded(40_000, 5000.0))
    result = dvt_edge("run", *arguments, "--duration", 0.7)
    assert result.code == 0
    (summary,) = objects(result.out)
    check_sum(summary)
    assert summary["ended_by"] == "duration"
    assert summary["dropped"] > 0
    assert 0.7 <= summary["seconds"] < 5


def test_every_frame(dvt_edge: Run, write_profile: Write, recorded: Recorded) -> None:
    arguments = ("--json", "--profile", write_profile(), "--source", recorded(50, 5000.0))
    (summary,) = objects(dvt_edge("run", *arguments, "--every-frame").out)
    assert (summary["answered"], summary["dropped"]) == (50, 0)


def test_deadline(dvt_edge: Run, write_profile: Write, recorded: Recorded) -> None:
    """None but the first stage fits."""
    arguments = ("--profile", write_profile(budget={"max_stage": 3}), "--source", recorded(5))
    result = dvt_edge("run", *arguments, "--deadline-ms", 0.01, "--jsonl", "-")
    answers = [values for values in objects(result.out) if "event" not in values]
    assert {values["exit_stage"] for values in answers} == {1}


def test_record_and_replay(
    dvt_edge: Run, write_profile: Write, recorded: Recorded, tmp_path: Path
) -> None:
    """The same answers at the same budget, from the files of the recording alone."""
    first, again = tmp_path / "first", tmp_path / "again.jsonl"
    arguments = ("run", "--profile", write_profile(), "--every-frame")
    dvt_edge(*arguments, "--source", recorded(40), "--record", first)
    result = dvt_edge(*arguments, "--source", f"replay://{first}?fps=0", "--jsonl", again)
    assert result.code == 0
    answers = [v for v in objects(again.read_text(encoding="utf-8")) if "event" not in v]
    keys = ("seq", "class_id", "exit_stage", "confidences", "classes")
    old = [[line[key] for key in keys] for line in read_answers(first)]
    assert old == [[line[key] for key in keys] for line in answers]
    assert len(old) == 40
    result = dvt_edge(*arguments, "--source", "replay://x", "--record", first)
    assert "is not empty; record to a new folder" in error_line(result)


def test_annotate(dvt_edge: Run, write_profile: Write, recorded: Recorded, tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="needs PyAV")
    video = tmp_path / "out.mp4"
    arguments = ("--profile", write_profile(), "--source", recorded(12), "--every-frame")
    result = dvt_edge("run", *arguments, "--annotate", video)
    assert result.code == 0
    assert f"annotate: file {video}, frames 12" in result.out
    with av.open(str(video)) as container:
        assert len(list(container.decode(video=0))) == 12


def test_full_disk(dvt_edge: Run, write_profile: Write, recorded: Recorded) -> None:
    """The camera goes on, the lines that are lost are counted, the exit code says so."""
    arguments = ("--profile", write_profile(), "--source", recorded(20))
    result = dvt_edge("run", "--json", *arguments, "--jsonl", "/dev/full")
    assert result.code == 1
    (summary,) = objects(result.out)
    assert summary["answered"] == 20
    assert summary["outputs"]["jsonl"] == {
        "file": "/dev/full",
        "lines": 0,
        "lost": 20 + summary["events"],
        "failures": 0,
    }
    assert result.err.count("No space left on device") == 1


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--jsonl", "gone/answers.jsonl", "cannot be written (No such file or directory)"),
        ("--annotate", "gone/out.mp4", "cannot be written (No such file or directory)"),
        ("--annotate", "out.avi", "ends in .mp4, .mov, .mkv, found '.avi'"),
        ("--mqtt", "mqtt://me:secret@host", "found no topic; expected mqtt://"),
        ("--mqtt", "//", "found the scheme ''"),
        ("--source", "replay://gone", "gone: no recording"),
        ("--source", "replay://gone?fps=x", "expected replay://folder"),
    ],
)
def test_wrong_arguments(
    dvt_edge: Run,
    write_profile: Write,
    recorded: Recorded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    value: str,
    problem: str,
) -> None:
    """One line, and no password in it."""
    monkeypatch.chdir(tmp_path)
    arguments = ["--profile", write_profile(), "--source", recorded(1), option, value]
    result = dvt_edge("run", *arguments)
    assert problem in error_line(result)
    assert "secret" not in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--duration", "0"],
        ["--duration", "nan"],
        ["--deadline-ms", "-1"],
        ["--max-frames", "0"],
        [],
    ],
    ids=" ".join,
)
def test_wrong_command_lines(dvt_edge: Run, write_profile: Write, arguments: list[str]) -> None:
    """The last one names no camera at all."""
    source = ["--source", "replay://x"] if arguments else []
    result = dvt_edge("run", "--profile", write_profile(), *source, *arguments)
    assert (result.code, result.out) == (2, "")
    assert "Usage:" in result.err


def test_the_camera_of_the_profile(
    dvt_edge: Run,
    write_profile: Write,
    recorded: Recorded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its path is relative to the profile."""
    recorded(5)
    monkeypatch.chdir("/")
    profile = write_profile(camera={"source": "replay://recording?fps=0"})
    result = dvt_edge("run", "--profile", profile)
    assert result.code == 0
    assert result.out.startswith(f"replay://{tmp_path}/recording?fps=0: 5 frames")


def test_a_camera(dvt_edge: Run, write_profile: Write, tmp_path: Path) -> None:
    """Moving scenes, at their pace; recorded, they are a camera again."""
    arguments = ("run", "--json", "--profile", write_profile())
    folder = tmp_path / "new"
    result = dvt_edge(
        *arguments, "--source", "test://?fps=50", "--max-frames", 20, "--record", folder
    )
    assert result.code == 0, result.err
    (summary,) = objects(result.out)
    check_sum(summary)
    assert summary["answered"] == 20
    assert summary["cameras"][0]["pictures"]["received"] >= summary["captured"]
    assert summary["cameras"][0]["age_ms"]["p50"] > 0
    (again,) = objects(dvt_edge(*arguments, "--source", f"replay://{folder}").out)
    assert again["captured"] == summary["outputs"]["record"]["frames"]


@pytest.mark.slow
def test_a_video_file(
    dvt_edge: Run, write_profile: Write, recorded: Recorded, tmp_path: Path
) -> None:
    """Of a file every frame can be had, and the file's end is the end."""
    pytest.importorskip("av", reason="needs PyAV")
    video = tmp_path / "out.mp4"
    arguments = ("run", "--json", "--profile", write_profile(), "--every-frame")
    dvt_edge(*arguments, "--source", recorded(12, 25.0), "--annotate", video)
    result = dvt_edge(*arguments, "--source", video)
    assert result.code == 0, result.err
    (summary,) = objects(result.out)
    assert (summary["answered"], summary["dropped"], summary["failed"]) == (12, 0, 0)
    assert summary["ended_by"] == "source"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("rstp://me:secret@host/stream", "unknown source rstp://"),
        ("file:///gone.mp4", "not found"),
        ("v4l2:///dev/video99", "not found"),
    ],
)
def test_cameras_that_do_not_open(
    dvt_edge: Run, write_profile: Write, source: str, problem: str
) -> None:
    result = dvt_edge("run", "--profile", write_profile(), "--source", source)
    assert problem in error_line(result)
    assert "secret" not in result.err


def test_no_module_of_this_is_loaded_for_other_commands() -> None:
    """Only the command that is run is imported."""
    code = (
        "import sys\nfrom dvt_edge.cli import run\nrun(['doctor', '--help'])\n"
        "print([m for m in sys.modules if m.startswith(('dvt_edge.app', 'av', 'paho'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
