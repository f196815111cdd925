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
    arguments = ["--profile", write_profile(), option, value]
    if option != "--source":
        arguments += ["--source", recorded(1)]
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
        ["--roi", "0,0,48"],
        ["--roi", "0,0,48,0"],
        ["--roi=-1,0,48,48"],
        ["--roi", "a,b,c,d"],
        ["--roi", "0,0,9,9", "--roi", "0,0,9,9"],
        ["--source", "replay://x"],
        ["--regroup-ms", "4"],
        ["--source", "replay://y", "--regroup-ms", "0"],
        ["--source", "replay://y", *["--roi", "0,0,9,9"] * 3],
        [],
    ],
    ids=" ".join,
)
def test_wrong_command_lines(dvt_edge: Run, write_profile: Write, arguments: list[str]) -> None:
    """``--roi`` more often than cameras, a camera given twice, ``--regroup-ms`` for one; the last
    one names no camera at all."""
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


@pytest.fixture
def two(tmp_path: Path, samples: Path) -> list[str]:
    """Arguments for two cameras, of 20 and of 12 frames."""
    counts = {"left": 20, "right": 12}
    uris = [write_recording(tmp_path / name, samples, n) for name, n in counts.items()]
    return [argument for uri in uris for argument in ("--source", uri)]


def test_two_cameras(dvt_edge: Run, write_profile: Write, two: list[str], tmp_path: Path) -> None:
    """Every frame of both is answered; whatever is written says which camera it was."""
    lines = tmp_path / "answers.jsonl"
    result = dvt_edge("run", "--json", "--profile", write_profile(), *two, "--jsonl", lines)
    assert result.code == 0, result.err
    (summary,) = objects(result.out)
    check_sum(summary)
    assert [camera["source"] for camera in summary["cameras"]] == two[1::2]
    assert [camera["answered"] for camera in summary["cameras"]] == [20, 12]
    assert (summary["answered"], summary["ended_by"]) == (32, "source")
    answers = [v for v in objects(lines.read_text(encoding="utf-8")) if "event" not in v]
    for uri, count in zip(two[1::2], (20, 12), strict=True):
        assert [v["seq"] for v in answers if v["source"] == uri] == list(range(count))
    text = dvt_edge("run", "--profile", write_profile(), *two, "--max-frames", 5)
    assert text.out.count("5 frames in ") == 2  # of each


def test_a_dead_camera_costs_the_others_nothing(
    dvt_edge: Run, write_profile: Write, two: list[str], tmp_path: Path
) -> None:
    """One that is not there, and one that fails on the way: the third is answered to its end; the
    exit code and the summary tell."""
    (tmp_path / "right" / "bad.png").unlink()
    recording = tmp_path / "right" / "answers.jsonl"
    broken = recording.read_text().splitlines()
    broken[4] = '{"file": "bad.png", "seq": 4, "at_s": 0.0}'
    recording.write_text("\n".join(broken) + "\n")
    arguments = ("run", "--profile", write_profile(), *two, "--source", "replay://gone")
    result = dvt_edge(*arguments, "--json")
    assert result.code == 1
    (summary,) = objects(result.out)
    check_sum(summary)
    assert [camera["answered"] for camera in summary["cameras"]] == [20, 4, 0]
    left, right, gone = (camera["error"] for camera in summary["cameras"])
    assert left is None
    assert "bad.png: cannot be read" in right
    assert "gone: no recording" in gone
    assert summary["ended_by"] == "error"
    text = dvt_edge(*arguments)
    assert text.code == 1
    assert text.out.count("ended by an error") == 2
    assert text.out.count("ended by the camera's end") == 1
    assert "gone: no recording" in text.out


def test_no_camera_is_there(dvt_edge: Run, write_profile: Write) -> None:
    """The last line names both; before it, each may have been noted when it failed."""
    sources = ("--source", "replay://gone", "--source", "replay://lost")
    result = dvt_edge("run", "--profile", write_profile(), *sources)
    assert (result.code, result.out) == (1, "")
    *_, line = result.err.splitlines()
    assert line.startswith("error: ")
    assert "gone: no recording" in line
    assert "lost: no recording" in line


def test_files_of_each_camera(
    dvt_edge: Run, write_profile: Write, two: list[str], tmp_path: Path
) -> None:
    """Videos and recordings are numbered as ``--source`` is; each recording is a camera again."""
    pytest.importorskip("av", reason="needs PyAV")
    new, video = tmp_path / "new", tmp_path / "out.mp4"
    arguments = ("run", "--json", "--profile", write_profile(), "--every-frame")
    result = dvt_edge(*arguments, *two, "--record", new, "--annotate", video)
    assert result.code == 0, result.err
    (summary,) = objects(result.out)
    outputs = summary["outputs"]
    assert [outputs[f"record {k}"]["frames"] for k in (1, 2)] == [20, 12]
    assert [outputs[f"annotate {k}"]["frames"] for k in (1, 2)] == [20, 12]
    assert {path.name for path in tmp_path.glob("*.mp4")} == {"out-1.mp4", "out-2.mp4"}
    for k, count in ((1, 20), (2, 12)):
        assert {line["source"] for line in read_answers(new / str(k))} == {two[2 * k - 1]}
        (again,) = objects(dvt_edge(*arguments, "--source", f"replay://{new}/{k}?fps=0").out)
        assert again["answered"] == count
    result = dvt_edge(*arguments, *two, "--record", new)
    assert "is not empty; record to a new folder" in error_line(result)


def test_regrouping(dvt_edge: Run, write_profile: Write, two: list[str], tmp_path: Path) -> None:
    """A note says whether it pays here; classes and exits are those without."""
    found = []
    for k, more in enumerate(([], ["--regroup-ms", 5])):
        lines = tmp_path / f"{k}.jsonl"
        arguments = ("run", "--profile", write_profile(), *two, "--jsonl", lines, *more)
        result = dvt_edge(*arguments)
        assert result.code == 0, result.err
        assert ("the later stages take " in result.err) == bool(more)
        answers = [v for v in objects(lines.read_text(encoding="utf-8")) if "event" not in v]
        keys = ("source", "seq", "class_id", "exit_stage")
        found.append(sorted(tuple(v[key] for key in keys) for v in answers))
    assert found[0] == found[1]


def test_a_uri_that_means_nothing(dvt_edge: Run, write_profile: Write, two: list[str]) -> None:
    """Is no camera that may come back: nothing is begun."""
    for uri, problem in (
        ("rstp://me:secret@host/x", "unknown source rstp://"),
        ("replay://x?fps=y", "expected replay://folder"),
    ):
        result = dvt_edge("run", "--profile", write_profile(), *two, "--source", uri)
        assert problem in error_line(result)
        assert "secret" not in result.err


def test_video_is_of_one_camera(dvt_edge: Run, write_profile: Write, two: list[str]) -> None:
    profile = write_profile(budget={"latency_ms": 2.0, "video": True})
    assert "once for each camera" in error_line(dvt_edge("run", "--profile", profile, *two))


def test_a_part_of_the_picture(dvt_edge: Run, write_profile: Write, two: list[str]) -> None:
    """One for all cameras, or one for each; a part that reaches out makes failed frames, and one
    note for each camera."""
    arguments = ("run", "--json", "--profile", write_profile(), *two)
    inside, outside = "--roi=8,8,32,32", "--roi=40,8,32,32"
    for rois, answered in (
        ([inside], [20, 12]),
        ([inside, outside], [20, 0]),
        ([outside], [0, 0]),
    ):
        result = dvt_edge(*arguments, *rois)
        (summary,) = objects(result.out)
        check_sum(summary)
        assert [camera["answered"] for camera in summary["cameras"]] == answered
        assert summary["failed"] == 32 - sum(answered)
        assert result.code == (sum(answered) < 32)
        said = result.err.count("(40, 8, 32, 32) is not within the frame of 48x48 pixels")
        assert said == answered.count(0)


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
