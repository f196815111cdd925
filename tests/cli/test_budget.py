"""``dvt-edge budget``, and what budgets change in ``classify``, ``profile`` and ``inspect``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.costs import load_costs
from dvt_edge.policy.solver import frontier
from dvt_edge.runtime.runtime import Runtime
from tests.cli.conftest import Result, Run, Write, error_line

COSTS_MS = (1.0, 2.0, 4.0)
"""Of leaving at each exit of the bundle."""


def _no_constant(name: str) -> NoReturn:
    raise AssertionError(f"{name} is not JSON")


def _json(result: Result) -> dict[str, Any]:
    """The one object printed, by the letter of the standard."""
    assert (result.code, result.err) == (0, "")
    assert result.out.count("\n") == 1
    values: dict[str, Any] = json.loads(result.out, parse_constant=_no_constant)
    return values


# budget


def test_text(dvt_edge: Run, write_profile: Write) -> None:
    """Thresholds, what they give, and the frontier from its cheapest to its most accurate point."""
    path = write_profile()
    result = dvt_edge("budget", "--profile", path)
    assert (result.code, result.err) == (0, "")
    with Runtime(path) as runtime:
        solution, count = runtime.solution, len(runtime.records)
        curve = frontier(runtime.records, runtime.costs.mean_ms)
    text = " ".join(result.out.split())
    thresholds = ", ".join(f"{t:.4f}" for t in solution.thresholds[:-1])
    assert text.startswith(f"Thresholds {thresholds}: mean {solution.cost:.3f} ms, accuracy ")
    assert f"{100 * solution.accuracy:.2f} % on {count} records" in text
    assert "Certificate" not in text
    for point in (curve[0], curve[-1]):
        assert f"{point.cost:.3f} │ {100 * point.accuracy:.2f} %" in text
    assert "\x1b" not in result.out


def test_text_with_a_certificate(dvt_edge: Run, write_profile: Write) -> None:
    """What holds, how surely, and from how many records."""
    result = dvt_edge("budget", "--profile", write_profile(), "--confidence-level", "0.9")
    assert result.code == 0
    text = " ".join(result.out.split())
    assert "Certificate: with probability 0.9, from 100 records: mean at most 2.000 ms" in text


def test_json(dvt_edge: Run, write_profile: Write) -> None:
    """One object with the library's values."""
    path = write_profile()
    values = _json(dvt_edge("budget", "--json", "--profile", path))
    assert values.keys() == {"budget", "solution", "certificate", "binding", "frontier"}
    assert values["binding"]["key"] == "latency_ms"
    assert values["binding"]["step"] == pytest.approx(0.1)
    assert values["budget"]["latency_ms"] == 2.0
    assert values["certificate"] is None
    with Runtime(path) as runtime:
        assert values["solution"]["mean_ms"] == pytest.approx(runtime.solution.cost)
        assert values["solution"]["accuracy"] == pytest.approx(runtime.solution.accuracy)
    costs = [point["mean_ms"] for point in values["frontier"]]
    accuracies = [point["accuracy"] for point in values["frontier"]]
    assert costs == sorted(costs)
    assert accuracies[-1] > accuracies[0]  # counted; what is expected rises all the way
    assert len(costs) > 2
    for point in [values["solution"], *values["frontier"]]:
        assert len(point["thresholds"]) == len(point["exit_fraction"]) == 3
        assert sum(point["exit_fraction"]) == pytest.approx(1)
        assert np.dot(point["exit_fraction"], COSTS_MS) == pytest.approx(point["mean_ms"])


@pytest.mark.parametrize(
    ("options", "least_ms", "most_ms"),
    [
        (["--latency-ms", "1"], 1.0, 1.0),
        (["--latency-ms", "1.5"], 1.0, 1.5),
        (["--latency-ms", "1e9"], 1.5, 4.0),
        (["--statistic", "max"], 1.0, 2.0),
        (["--statistic", "p50", "--latency-ms", "1.5"], 1.0, 2.5),
        (["--statistic", "p95"], 1.0, 2.0),
        (["--fps", "500"], 1.0, 1.6),
        (["--fps", "500", "--utilisation", "1"], 1.0, 2.0),
        (["--max-stage", "1"], 1.0, 1.0),
        (["--max-stage", "2", "--latency-ms", "4"], 1.0, 2.0),
        (["--min-accuracy", "0.01"], 1.0, 1.0),
        (["--confidence-level", "0.95"], 1.0, 2.0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_replace_the_profiles_keys(
    dvt_edge: Run, write_profile: Write, options: list[str], least_ms: float, most_ms: float
) -> None:
    """Each option acts on the thresholds, and the budget in force is told."""
    values = _json(dvt_edge("budget", "--json", "--profile", write_profile(), *options))
    assert least_ms <= values["solution"]["mean_ms"] <= most_ms + 1e-9
    given = dict(zip(options[::2], options[1::2], strict=True))
    for option, value in given.items():
        told = values["budget"][option.removeprefix("--").replace("-", "_")]
        assert told == (value if option == "--statistic" else float(value))
    if "--latency-ms" not in given:
        assert values["budget"]["latency_ms"] == 2.0
    assert (values["certificate"] is not None) == ("--confidence-level" in given)
    stages = int(given.get("--max-stage", 3))
    assert values["solution"]["exit_fraction"][stages:] == [0] * (3 - stages)


def test_json_certificate(dvt_edge: Run, write_profile: Write) -> None:
    """Its bound lies within the budget, its sureness is what was asked for."""
    options = ["--confidence-level", "0.9", "--latency-ms", "2.5"]
    values = _json(dvt_edge("budget", "--json", "--profile", write_profile(), *options))
    certificate = values["certificate"]
    assert certificate["delta"] == pytest.approx(0.1)
    assert values["solution"]["mean_ms"] <= certificate["cost_bound"] <= 2.5
    assert 0 <= certificate["accuracy_gap_bound"] <= 1
    assert certificate["accuracy_bound"] <= values["solution"]["accuracy"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--latency-ms", "0.5"], "smaller than the first exit's; the smallest possible is 1 ms"),
        (["--latency-ms", "0.5"], "is 1 ms, with an accuracy of "),
        (["--latency-ms", "0"], "latency_ms: expected a positive number of milliseconds, found 0"),
        (["--latency-ms", "-1"], "expected a positive number of milliseconds, found -1.0\n"),
        (["--latency-ms", "nan"], "latency_ms: expected a positive number of milliseconds, found"),
        (["--latency-ms", "inf"], "latency_ms: expected a positive number of milliseconds, found"),
        (["--energy-mj", "3"], "needs the measured energy per exit, and none was measured"),
        (["--fps", "900"], "(900 fps at 80 % utilisation) is smaller than the first exit's; the"),
        (["--fps", "0"], "fps: expected a positive number of frames per second, at most 10000"),
        (["--utilisation", "2"], "utilisation: expected a share above 0 and at most 1, such as"),
        (["--audit", "0.5", "--latency-ms", "1.2"], "auditing 0.5 of the frames alone breaks"),
        (["--min-accuracy", "1"], "the highest possible is 0."),
        (["--min-accuracy", "80"], "min_accuracy: expected a share above 0 and at most 1, such"),
        (["--max-stage", "4"], "max_stage 4 does not exist; the cascade has 3 stages"),
        (["--max-stage", "0"], "max_stage: expected a stage, counted from 1, found 0"),
        (["--confidence-level", "95"], "above 0.5 and below 1, such as 0.95, found 95.0\n"),
        (["--audit", "5"], "audit: expected a share from 0 to 0.5, such as 0.01, found 5.0"),
        (["--deadline-ms", "-3"], "deadline_ms: expected a positive number of milliseconds"),
        (["--adapt", "--statistic", "p99"], "adapt keeps a mean latency: it needs statistic mean"),
        (["--confidence-level", "0.95", "--min-accuracy", "0.7"], "prove an accuracy of 0."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_values_that_cannot_be(
    dvt_edge: Run, write_profile: Write, options: list[str], message: str, flags: list[str]
) -> None:
    """One line that names the key or the nearest feasible value."""
    assert message in error_line(dvt_edge("budget", *flags, "--profile", write_profile(), *options))


@pytest.mark.parametrize(
    "options", [["--latency-ms", "soon"], ["--statistic", "p90"], ["--plot", "."], ["extra"]]
)
def test_wrong_command_lines(dvt_edge: Run, write_profile: Write, options: list[str]) -> None:
    """The exit code is 2."""
    result = dvt_edge("budget", "--profile", write_profile(), *options)
    assert (result.code, result.out) == (2, "")
    assert "Usage:" in result.err


def test_an_impossible_profile_can_be_asked_about(dvt_edge: Run, write_profile: Write) -> None:
    """Its own budget is refused, another one is answered."""
    path = write_profile(budget={"latency_ms": 0.5})
    assert "the smallest possible is 1 ms" in error_line(dvt_edge("budget", "--profile", path))
    values = _json(dvt_edge("budget", "--json", "--profile", path, "--latency-ms", "2"))
    assert values["solution"]["mean_ms"] <= 2


def test_a_percentile_is_shown_and_certified(dvt_edge: Run, write_profile: Write) -> None:
    """Not only the mean that comes with it."""
    options = ["--latency-ms", "2.5", "--statistic", "p99", "--confidence-level", "0.95"]
    result = dvt_edge("budget", "--profile", write_profile(), *options)
    text = " ".join(result.out.split())
    shown = re.search(r": p99 ([0-9.]+) ms, mean ([0-9.]+) ms", text)
    assert shown is not None
    assert float(shown[2]) <= float(shown[1]) <= 2.5
    assert "at most 1 % of the frames take longer than 2.5 ms, mean at most" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--latency-ms", "1.5"], "Price: the mean latency of 1.5 ms, of which 1."),
        (["--fps", "600"], "Price: the mean latency of 1.333 ms (600 fps at 80 % utilisation), of"),
        (["--latency-ms", "1e6"], "Price: no limit binds"),
        (["--min-accuracy", "0.01"], "Price: accuracy of at least 0.01 binds; 1 point less saves"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_binding_limit_and_its_price_are_told(
    dvt_edge: Run, write_profile: Write, options: list[str], words: str
) -> None:
    result = dvt_edge("budget", "--profile", write_profile(), *options)
    assert words in " ".join(result.out.split())


def test_nothing_is_run_or_written(
    dvt_edge: Run, write_profile: Write, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored records and costs answer; the bundle stays as it is."""

    def forbidden(*arguments: object, **keywords: object) -> NoReturn:
        raise AssertionError("a stage was run")

    monkeypatch.setattr(
        "dvt_edge.runtime.backends.onnxruntime_cpu.OnnxRuntimeBackend.run_stage", forbidden
    )
    before = {path: path.read_bytes() for path in own_bundle.iterdir()}
    assert dvt_edge("budget", "--profile", write_profile(), "--latency-ms", "3").code == 0
    assert {path: path.read_bytes() for path in own_bundle.iterdir()} == before


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_plot(dvt_edge: Run, write_profile: Write, tmp_path: Path, flags: list[str]) -> None:
    """A picture of the frontier, beside what is printed anyway."""
    picture = tmp_path / "frontier.png"
    path = write_profile()
    result = dvt_edge("budget", *flags, "--profile", path, "--plot", picture)
    assert (result.code, result.err) == (0, "")
    assert result.out == dvt_edge("budget", *flags, "--profile", path).out
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 10


@pytest.mark.parametrize("name", ["gone/frontier.png", "frontier.docx"])
def test_plot_that_cannot_be_written(
    dvt_edge: Run, write_profile: Write, tmp_path: Path, name: str
) -> None:
    """A folder that is not there and a format that is none: one line, nothing printed."""
    result = dvt_edge("budget", "--profile", write_profile(), "--plot", tmp_path / name)
    assert f"{tmp_path / name}: the picture cannot be written (" in error_line(result)


def test_plot_without_matplotlib(
    dvt_edge: Run, write_profile: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = dvt_edge("budget", "--profile", write_profile(), "--plot", tmp_path / "a.png")
    assert "pip install 'dvt-edge[plot]'" in error_line(result)


# classify


def _late(path: Path, images: Path) -> list[str]:
    """Images that do not leave at the first exit."""
    with Runtime(path) as runtime:
        return [
            str(file)
            for file in sorted(images.rglob("*.png"))
            if runtime.classify(np.asarray(Image.open(file))).exit_stage > 1
        ]


@pytest.fixture
def late_profile(write_profile: Write, images: Path) -> tuple[Path, list[str]]:
    """A profile under which some of the images need more than the first stage, and those images."""
    path = write_profile(budget={"latency_ms": 3.9, "min_accuracy": 0.01})
    bundle = Bundle(path.parent / "bundle")
    best = max(frontier(bundle.records(), COSTS_MS), key=lambda point: point.accuracy)
    path = write_profile(budget={"min_accuracy": best.accuracy - 1e-9})
    found = _late(path, images)
    assert found
    return path, found


@pytest.mark.parametrize("how", ["option", "budget"])
def test_classify_with_a_deadline(
    dvt_edge: Run,
    write_profile: Write,
    images: Path,
    late_profile: tuple[Path, list[str]],
    how: str,
) -> None:
    """Without time the first exit answers; what it cut off is marked and explained."""
    path, late = late_profile
    options = ["--deadline-ms", "1e-6"]
    if how == "budget":
        with Runtime(path) as runtime:
            budget = runtime.budget.model_dump(mode="json") | {"deadline_ms": 1e-6}
        path, options = write_profile(budget=budget), []
    result = dvt_edge("classify", "--json", "--profile", path, *options, images)
    assert (result.code, result.err) == (0, "")
    entries = [json.loads(line, parse_constant=_no_constant) for line in result.out.splitlines()]
    assert {entry["exit_stage"] for entry in entries} == {1}
    assert [entry["path"] for entry in entries if entry["truncated"]] == late
    for entry in entries:
        assert ("(truncated): stage 2 needs" in entry["explanation"]) == entry["truncated"]
        assert entry["explanation"].startswith(f"'{entry['label']}' left at exit 1 of 3 ")


def test_classify_with_time_enough(dvt_edge: Run, images: Path, write_profile: Write) -> None:
    """A generous deadline changes no answer."""
    path = write_profile()
    keys = ("path", "class_id", "exit_stage", "truncated", "explanation")
    found = [
        [
            [json.loads(line)[key] for key in keys]
            for line in dvt_edge(
                "classify", "--json", "--profile", path, *more, images
            ).out.splitlines()
        ]
        for more in ([], ["--deadline-ms", "1e9"], ["--deadline-ms", "inf"])
    ]
    assert len(found[0]) == 4
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_classify_with_a_deadline_that_is_none(
    dvt_edge: Run, write_profile: Write, images: Path, value: str
) -> None:
    """One line, nothing classified."""
    options = ["--deadline-ms", value]
    message = error_line(dvt_edge("classify", "--profile", write_profile(), *options, images))
    assert "a deadline is a positive number of milliseconds" in message


def test_classify_explain(dvt_edge: Run, write_profile: Write, images: Path) -> None:
    """Under each line the sentence that --json has too; without the option only the lines."""
    path = write_profile()
    plain = dvt_edge("classify", "--profile", path, images).out.splitlines()
    told = dvt_edge("classify", "--explain", "--profile", path, images).out.splitlines()
    entries = dvt_edge("classify", "--explain", "--json", "--profile", path, images).out
    assert (len(plain), len(told)) == (6, 10)
    sentences = [json.loads(line)["explanation"] for line in entries.splitlines()]
    assert told[1:-2:2] == [f"  {sentence}" for sentence in sentences]
    for line, before in zip(told[:-2:2], plain[:-2], strict=True):
        assert line.split("  ")[:4] == before.split("  ")[:4]


def test_classify_tells_events(
    dvt_edge: Run, write_profile: Write, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits that are not finite are noted on standard error, in JSON the confidence is null."""
    from dvt_edge.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
    from dvt_edge.runtime.backends.protocol import StageAnswer

    original = OnnxRuntimeBackend.run_stage

    def broken(self: OnnxRuntimeBackend, stage: int, count: int, slot: int = 0) -> StageAnswer:
        answer = original(self, stage, count, slot)
        return StageAnswer(np.full_like(answer.confidence, np.nan), answer.class_id)

    monkeypatch.setattr(OnnxRuntimeBackend, "run_stage", broken)
    image = next(images.rglob("*.png"))
    result = dvt_edge("classify", "--json", "--profile", write_profile(), image)
    assert result.code == 0
    entry = json.loads(result.out, parse_constant=_no_constant)
    assert (entry["exit_stage"], entry["confidence"]) == (3, None)
    assert result.err.splitlines() == [
        "note: exit 1 gave logits that are NaN or infinite; the frame went on",
        "note: exit 2 gave logits that are NaN or infinite; the frame went on",
        "note: exit 3 gave logits that are NaN or infinite; do not rely on the answer",
    ]


# budgets without latency_ms


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_stage": 2}, "at most stage 2"),
        (
            {"latency_ms": 1e6, "statistic": "p95", "min_accuracy": 0.3},
            "p95 latency 1e+06 ms, accuracy of at least 0.3",
        ),
    ],
)
def test_every_command_bears_it(
    dvt_edge: Run,
    write_profile: Write,
    own_bundle: Path,
    images: Path,
    limits: dict[str, Any],
    words: str,
) -> None:
    """``profile``, ``inspect``, ``build``, ``classify`` and ``budget`` with other limits."""
    path = write_profile(budget=limits)
    result = dvt_edge("profile", "--profile", path, "--duration", "0.5", "--pace", "none")
    assert (result.code, result.err) == (0, "")
    assert f"Budget ({words}): expected mean " in " ".join(result.out.split())
    costs = load_costs(Bundle(own_bundle))
    assert costs is not None
    assert all(p99 and p99 > 0 for p99 in costs.stage_p99_ms)
    values = _json(
        dvt_edge("profile", "--json", "--profile", path, "--duration", "0.5", "--pace", "none")
    )
    assert {key: values["budget"][key] for key in limits} == limits
    assert dvt_edge("build", "--profile", path).code == 0  # stores the budget
    result = dvt_edge("inspect", own_bundle)
    assert (result.code, result.err) == (0, "")
    assert f"budget: {words};" in " ".join(result.out.split())
    assert dvt_edge("classify", "--profile", path, images).code == 0
    assert dvt_edge("budget", "--profile", path).code == 0
