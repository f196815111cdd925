"""``dvt-edge classify``."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import click

from dvt_edge.cli.options import PATH, json_option, profile_option
from dvt_edge.cli.output import note_skipped, print_json, watched
from dvt_edge.errors import DataError
from dvt_edge.files.datasets import find_images, load_image
from dvt_edge.runtime.prediction import Prediction
from dvt_edge.runtime.runtime import Runtime

STDIN = Path("-")


@click.command("classify")
@profile_option
@click.argument("paths", nargs=-1, required=True, type=PATH)
@click.option("--deadline-ms", type=float, help="Give the best answer within this time, per image.")
@click.option("--explain", is_flag=True, help="Explain why each image left where it did.")
@json_option
def command(
    profile_file: Path,
    paths: tuple[Path, ...],
    deadline_ms: float | None,
    explain: bool,
    as_json: bool,
) -> int:
    """Classify image files and folders; '-' reads a list of paths from standard input.

    A bad image is reported and the others are classified. Where the images are in folders named
    like classes, the summary also says how many answers agree with the folder.
    """
    answers: list[tuple[Path, Prediction]] = []
    loaded: deque[Path] = deque()
    failed = 0

    def frames() -> Iterator[object]:
        nonlocal failed
        for path in _expand(paths):
            try:
                frame = load_image(path)
            except DataError as error:
                failed += 1
                click.echo(f"error: {error}", err=True)
            else:
                loaded.append(path)
                yield frame

    with watched(Runtime(profile_file)) as runtime:
        for answer in runtime.classify_each(frames(), color_order="rgb", deadline_ms=deadline_ms):
            path = loaded.popleft()
            answers.append((path, answer))
            if as_json:
                print_json(_values(path, answer))
                continue
            click.echo(
                f"{path}  {answer.label}  {100 * answer.confidence:.1f} %  exit "
                f"{answer.exit_stage}  {answer.latency_ms:.2f} ms"
            )
            if explain:
                click.echo(f"  {answer.explain()}")
        if answers and not as_json:
            names = set(runtime.bundle.manifest.class_names)
            _print_summary(answers, names, len(runtime.costs.exits), failed)
            click.echo(runtime.promise.sentence)
    return 1 if failed or not answers else 0


def _expand(arguments: Sequence[Path]) -> Iterator[Path]:
    for argument in arguments:
        found = 0
        if argument == STDIN:
            for line in sys.stdin:
                if path := line.strip():
                    found += 1
                    yield Path(path)
            if not found:
                click.echo("error: standard input: names no images; give a path a line", err=True)
        elif argument.is_dir():
            images = find_images(argument)
            if not images:
                click.echo(f"error: {argument}: holds no images", err=True)
            note_skipped(argument)
            yield from images
        else:
            yield argument


def _values(path: Path, p: Prediction) -> dict[str, Any]:
    return {
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
        parts.append(f"{100 * right / len(known):.2f} % match their folder")
    if failed:
        parts.append(f"{failed} failed")
    click.echo("; ".join(parts))
