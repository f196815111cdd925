"""``dvt-edge classify``: files, folders and lists through a Runtime."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dvt_edge.errors import DataError
from dvt_edge.files.datasets import find_images, load_image

if TYPE_CHECKING:
    from dvt_edge.runtime.prediction import Prediction
    from dvt_edge.runtime.runtime import Runtime


def classify_paths(
    runtime: Runtime,
    arguments: Sequence[str],
    *,
    as_json: bool,
    explain: bool = False,
    deadline_ms: float | None = None,
) -> int:
    """Classify every image, one line each; returns the exit code: 1 if any image failed.

    A bad image is reported and the others are classified. Where the images stand in folders named
    like classes, the summary also says how many answers agree with the folder.
    """
    names = set(runtime.bundle.manifest.class_names)
    answers: list[tuple[Path, Prediction]] = []
    failed = 0
    for path in _expand(arguments):
        try:
            prediction = runtime.classify(
                load_image(path), color_order="rgb", deadline_ms=deadline_ms
            )
        except DataError as error:
            failed += 1
            click.echo(f"error: {error}", err=True)
            continue
        answers.append((path, prediction))
        click.echo(_as_json(path, prediction) if as_json else _as_text(path, prediction))
        if explain and not as_json:
            click.echo(f"  {prediction.explain()}")
    if answers and not as_json:
        _print_summary(answers, names, len(runtime.costs.exits), failed)
    return 1 if failed or not answers else 0


def _expand(arguments: Sequence[str]) -> Iterator[Path]:
    for argument in arguments:
        if argument == "-":
            lines = (line.strip() for line in sys.stdin)
            yield from (Path(line) for line in lines if line)
        elif Path(argument).is_dir():
            found = find_images(Path(argument))
            if not found:
                click.echo(f"error: {argument}: holds no images", err=True)
            yield from found
        else:
            yield Path(argument)


def _as_json(path: Path, p: Prediction) -> str:
    return json.dumps(
        {
            "path": str(path),
            "class_id": p.class_id,
            "label": p.label,
            "confidence": None if isnan(p.confidence) else p.confidence,
            "exit_stage": p.exit_stage,
            "latency_ms": p.latency_ms,
            "preprocess_ms": p.preprocess_ms,
            "stage_latency_ms": p.stage_latency_ms,
            "energy_mj": p.energy_mj,
            "truncated": p.truncated,
            "explanation": p.explain(),
        }
    )


def _as_text(path: Path, p: Prediction) -> str:
    return (
        f"{path}  {p.label}  {100 * p.confidence:.1f} %  exit {p.exit_stage}  {p.latency_ms:.2f} ms"
    )


def _print_summary(
    answers: Sequence[tuple[Path, Prediction]], names: set[str], exits: int, failed: int
) -> None:
    count = len(answers)
    mean = sum(p.latency_ms for _, p in answers) / count
    shares = ", ".join(
        f"exit {k + 1} {100 * sum(p.exit_stage == k + 1 for _, p in answers) / count:.1f} %"
        for k in range(exits)
    )
    parts = [f"{count} images", f"mean {mean:.2f} ms", shares]
    known = [(path, p) for path, p in answers if path.parent.name in names]
    if known:
        right = sum(path.parent.name == p.label for path, p in known)
        parts.append(f"{100 * right / len(known):.2f} % as their folder says")
    if failed:
        parts.append(f"{failed} failed")
    click.echo("; ".join(parts))
