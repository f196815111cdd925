"""What ``make arm64`` concludes from two machines' answers; nothing is emulated here."""

from __future__ import annotations

from typing import Any

import pytest
from arm64 import DEBIAN, mirror
from arm64_report import compare, failures, markdown

SCENES: list[list[Any]] = [
    ["a/1.png", 0, 1, [0.9]],
    ["b/2.png", 3, 2, [0.79, 0.95]],
    ["c/3.png", 1, 2, [0.1, 0.2]],
]


def _answers(**changes: list[Any]) -> dict[str, Any]:
    """``SCENES`` on another machine, where ``changes`` replaces scenes by their class's folder."""
    return compare(SCENES, [changes.get(row[0][0], row) for row in SCENES])


def _result(**answers: Any) -> dict[str, Any]:
    return {
        "machine": "aarch64, emulated",
        "times": "no time from this run counts",
        "date": "2025-01-01",
        "versions": {"aarch64": {"numpy": "2.0"}},
        "install": {"native_library": "loaded", "neon_instructions": 5, "torch": "missing"},
        "tests": {
            "folders": ["tests/runtime"],
            "left_out": ["tests/runtime/test_a.py"],
            "exit_status": 0,
            "passed": 7,
            "failed": 0,
            "skipped": {"no camera": 2},
        },
        "operators": {
            "instruction_sets": ["neon_dot", "plain"],
            "exit_status": 0,
            "passed": 9,
            "failed": 0,
        },
        "preprocess": {
            "max": {"compared": 4, "unlike_portable": 0, "unlike_pillow": 0, "same_as_host": True}
        },
        "answers": {"max": _answers(**answers)},
        "failed": [],
    }


def test_answers_alike() -> None:
    found = _answers(a=["a/1.png", 0, 1, [0.91]])
    assert (found["same_class"], found["same_exit"]) == (3, 3)
    assert found["largest_confidence_difference"] == pytest.approx(0.01)
    assert found["exits"] == {"1": 1, "2": 2}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        (["c/3.png", 2, 2, [0.1, 0.2]], ["1 scenes have another class on max"]),
        (["c/3.png", 1, 1, [0.1]], ["1 scenes have another exit on max"]),
        (["c/3.png", 1, 2, [0.1, 0.3]], []),
        (["c/3.png", 1, 2, [0.1, float("nan")]], ["a confidence on max is NaN"]),
    ],
    ids=["class", "exit", "confidence", "nan"],
)
def test_answers_unlike(row: list[Any], messages: list[str]) -> None:
    assert failures(_result(c=row)) == messages


def test_few_scenes_may_be_unlike() -> None:
    """Two of a hundred."""
    here = [[f"{i}.png", 0, 1, [0.9]] for i in range(100)]
    for changed, fails in ((2, False), (3, True)):
        there = [[name, 1 if i < changed else 0, 1, [0.9]] for i, (name, *_) in enumerate(here)]
        result = _result() | {"answers": {"max": compare(here, there)}}
        assert bool(failures(result)) == fails


def test_scenes_are_not_mixed_up() -> None:
    with pytest.raises(ValueError, match="not the same scene"):
        compare(SCENES, SCENES[::-1])


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("install", {"native_library": "no compiler"}, "native library: no compiler"),
        ("install", {"neon_instructions": 0}, "no NEON"),
        ("install", {"torch": "there"}, "torch was installed"),
        ("tests", {"failed": 1, "exit_status": 1}, "1 failed"),
        ("tests", {"passed": 0}, "tests: 0 failed"),
        ("operators", {"instruction_sets": ["plain"]}, "no INT8 dot products"),
        ("operators", {"failed": 2, "exit_status": 1}, "operators: 2 tests failed"),
        ("operators", {"passed": 0}, "operators: 0 tests failed"),
    ],
)
def test_claims_that_fail(section: str, changes: dict[str, Any], message: str) -> None:
    result = _result()
    assert failures(result) == []
    result[section] |= changes
    assert message in failures(result)[0]


@pytest.mark.parametrize(
    "change", [{"unlike_pillow": 1}, {"unlike_portable": 1}, {"same_as_host": False}]
)
def test_a_frame_that_differs_fails(change: dict[str, Any]) -> None:
    result = _result()
    result["preprocess"]["max"] |= change
    assert failures(result) == ["preprocessing on max is not the same bit for bit"]


def test_readers_see_that_it_is_emulated_and_what_failed() -> None:
    text = markdown(_result())
    assert "emulated" in text
    assert "No Arm hardware took part, and no time from this run counts" in text
    assert "7 passed, 0 failed, 2 skipped" in text
    assert "Every claim holds." in text
    text = markdown(_result() | {"failed": ["something"]})
    assert "**Failed:** something" in text
    assert "Every claim" not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", DEBIAN),
        ("URIs: http://one.example/debian\n", "http://one.example/debian"),
        (
            "deb [arch=amd64] https://two.example/debian/ bookworm main\n",
            "https://two.example/debian",
        ),
        ("# deb http://three.example/debian bookworm main\n", DEBIAN),
        ("deb http://four.example/debian-security bookworm main\n", DEBIAN),
        ("deb http://five.example/ubuntu jammy main\n", DEBIAN),
    ],
)
def test_mirror(text: str, expected: str) -> None:
    assert mirror(["", text]) == expected
