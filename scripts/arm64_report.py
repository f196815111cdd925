"""What ``arm64.py`` found on two machines, compared and put into words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

LEAST_ALIKE = 0.98
"""Share of the scenes that must get the host's class and exit: native attention multiplies bfloat16
where the processor can, floats elsewhere."""

Values = dict[str, Any]
Scene = Sequence[Any]
"""Name, class, exit, confidences of the exits that were asked."""


def compare(here: Sequence[Scene], there: Sequence[Scene]) -> Values:
    """The answers of two machines to the same scenes."""
    same_class = same_exit = 0
    largest = 0.0
    for mine, other in zip(here, there, strict=True):
        if mine[0] != other[0]:
            raise ValueError(f"{mine[0]} and {other[0]} are not the same scene")
        both = min(len(mine[3]), len(other[3]))
        apart = float(np.abs(np.subtract(mine[3][:both], other[3][:both])).max())
        largest = float(np.maximum(largest, apart))  # NaN stays
        same_class += mine[1] == other[1]
        same_exit += mine[2] == other[2]
    return {
        "scenes": len(here),
        "same_class": same_class,
        "same_exit": same_exit,
        "exits": dict(sorted(Counter(str(row[2]) for row in there).items())),
        "largest_confidence_difference": largest,
    }


def failures(result: Values) -> list[str]:
    """The claims that do not hold."""
    failed = []
    installed, tests = result["install"], result["tests"]
    if installed["native_library"] != "loaded":
        failed.append(f"native library: {installed['native_library']}")
    elif not installed["neon_instructions"]:
        failed.append("the native library has no NEON instructions")
    if installed["torch"] != "missing":
        failed.append("torch was installed, so this does not show that it is not needed")
    if tests["exit_status"] or not tests["passed"]:
        failed.append(f"tests: {tests['failed']} failed, exit status {tests['exit_status']}")
    operators = result["operators"]
    if "neon_dot" not in operators["instruction_sets"]:
        failed.append("no INT8 dot products on the largest processor")
    if operators["exit_status"] or not operators["passed"]:
        failed.append(f"operators: {operators['failed']} tests failed")
    for processor, row in result["preprocess"].items():
        if row["unlike_portable"] or row["unlike_pillow"] or not row["same_as_host"]:
            failed.append(f"preprocessing on {processor} is not the same bit for bit")
    for processor, row in result["answers"].items():
        for what in ("class", "exit"):
            alike = row[f"same_{what}"]
            if alike < LEAST_ALIKE * row["scenes"]:
                failed.append(f"{row['scenes'] - alike} scenes have another {what} on {processor}")
        if not np.isfinite(row["largest_confidence_difference"]):
            failed.append(f"a confidence on {processor} is NaN")
    return failed


def markdown(result: Values) -> str:
    """The result for readers."""
    installed, tests = result["install"], result["tests"]
    operators, skipped = result["operators"], sum(tests["skipped"].values())
    versions = [f"{m}: {_listed(v)}" for m, v in result["versions"].items()]
    lines = [
        "# 64-bit Arm, emulated",
        "",
        f"{result['machine']}; {result['date']}. `make arm64`. No Arm hardware took part, and "
        f"{result['times']}.",
        "",
        *(f"- {line}" for line in versions),
        f"- `pip install .`: native library {installed['native_library']}, "
        f"{installed['neon_instructions']} NEON instructions in it; torch {installed['torch']}.",
        f"- Tests in {', '.join(tests['folders'])}: {tests['passed']} passed, {tests['failed']} "
        f"failed, {skipped} skipped. Left out, for they need onnx: {', '.join(tests['left_out'])}.",
        f"- Operators for ONNX Runtime in the sets {', '.join(operators['instruction_sets'])}: "
        f"{operators['passed']} tests passed, {operators['failed']} failed.",
        "",
        "| emulated processor | preprocessed frames | unlike Pillow and NumPy | same as the host "
        "| scenes | same class | same exit | largest difference of a confidence |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for processor, row in result["answers"].items():
        frames = result["preprocess"][processor]
        same = "yes" if frames["same_as_host"] else "**no**"
        lines.append(
            f"| {processor} | {frames['compared']} | {frames['unlike_pillow']} | {same} "
            f"| {row['scenes']} | {row['same_class']} "
            f"| {row['same_exit']} | {row['largest_confidence_difference']:.4f} |"
        )
    failed = [f"- **Failed:** {text}" for text in result["failed"]]
    return "\n".join([*lines, "", *(failed or ["Every claim holds."])]) + "\n"


def _listed(versions: Values) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())
