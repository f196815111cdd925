"""``dvt-edge compare``: cascades and plain classifiers side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from dvt_edge.cli.options import FILE, PATH, duration_option, json_option
from dvt_edge.cli.output import (
    counted,
    figure,
    note_skipped,
    percent,
    print_json,
    show,
    show_table,
    watched,
)
from dvt_edge.cli.progress import shown_progress
from dvt_edge.errors import DataError
from dvt_edge.evaluation.compare import Cascade, Comparison, Contender, Interval, Side, compare
from dvt_edge.evaluation.plain_classifier import PlainClassifier
from dvt_edge.files.datasets import ArrayDataset, ImageDataset, open_images
from dvt_edge.machine.clock import RealClock
from dvt_edge.profile import Profile
from dvt_edge.runtime.measuring.timing import noise_frame
from dvt_edge.runtime.runtime import Runtime

NOISE = "noise"


@click.command("compare")
@click.argument("a", type=PATH)
@click.argument("b", type=PATH, required=False)
@click.option("--against", type=FILE, help="Any ONNX classifier: one image in, scores out.")
@click.option(
    "--data",
    type=PATH,
    help="Images; one folder per class gives accuracy [default: A's calibration images, or noise].",
)
@duration_option("Minimum duration in seconds; every image is classified at least once.")
@json_option
def command(
    a: Path,
    b: Path | None,
    against: Path | None,
    data: Path | None,
    duration_s: float,
    as_json: bool,
) -> None:
    """Compare A with B, or with any ONNX classifier, taking turns on the same images.

    A and B are profiles (YAML) or bundle folders; each keeps its own budget.
    """
    if b is None and against is None:
        raise click.UsageError("give B, or --against model.onnx, to compare A with")
    paths = [path for path in (a, b) if path is not None]
    for path in paths:
        if path.suffix == ".onnx":
            raise click.UsageError(
                f"{path} is neither a profile nor a bundle; pass it with --against {path}"
            )
    with ExitStack() as stack:
        runtimes = [watched(stack.enter_context(Runtime(path))) for path in paths]
        first = runtimes[0].bundle.manifest
        contenders: list[Contender] = [
            Cascade(name, runtime) for name, runtime in zip(_names(paths), runtimes, strict=True)
        ]
        if against is not None:
            contenders.append(PlainClassifier(against, first.input, first.engine.threads))
        images, what = _images(paths[0], runtimes[0], data)
        with shown_progress() as progress:
            result = compare(
                contenders,
                images,
                duration_s,
                RealClock(),
                order=None if what == NOISE else "rgb",
                progress=progress,
            )
        machine = runtimes[0].costs.machine
    if as_json:
        print_json({"machine": machine, "data": what, **result.model_dump(mode="json")})
    else:
        _show(result, what, machine)


def _names(paths: Sequence[Path]) -> list[str]:
    """Short names, or whole paths where those are alike."""
    short = [path.stem if path.is_file() else path.resolve().name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _images(source: Path, runtime: Runtime, data: Path | None) -> tuple[ImageDataset, str]:
    """The images to give to all contenders, and what to call them."""
    manifest = runtime.bundle.manifest
    if data is None and source.is_file():
        calibration = Profile.from_yaml(source).calibration.data
        if calibration.exists():
            data = calibration
    if data is None:
        return ArrayDataset(noise_frame(manifest)[None], None), NOISE
    images = open_images(data, manifest.class_names)
    note_skipped(data)
    if not len(images):
        raise DataError(f"{data}: holds no images")
    return images, str(data)


def _show(result: Comparison, what: str, machine: str) -> None:
    rows: dict[str, Callable[[Side], str]] = {
        "mean ms": lambda s: f"{s.latency.mean_ms:.3f}",
        "p50 ms": lambda s: f"{s.latency.p50_ms:.3f}",
        "p95 ms": lambda s: f"{s.latency.p95_ms:.3f}",
        "exits": lambda s: percent(*s.exit_fraction),
        "accuracy": lambda s: "-" if s.accuracy is None else percent(s.accuracy, digits=2),
        "energy": lambda s: figure(s.energy_mj, ".3f", " mJ (estimate)"),
        "engine": lambda s: s.engine,
        "precision": lambda s: s.precision,
        "files": lambda s: f"{s.size_bytes / 1e6:.2f} MB",
    }
    counts = f"{counted(result.images, 'image')}, {counted(result.frames, 'frame')} in turns"
    show_table(
        f"{what}: {counts}",
        ["", *(side.name for side in result.sides)],
        ([name, *map(text, result.sides)] for name, text in rows.items()),
        left=[""],
        caption=machine,
    )
    for difference in result.differences:
        ratio, points = difference.latency_ratio, difference.accuracy_points
        text = (
            f"{difference.name} takes {ratio.value:.3g} times as long as {difference.to} "
            f"({_range(ratio, '.3g')})"
        )
        if points is not None:
            text += f"; accuracy {points.value:+.2f} points ({_range(points, '+.2f')})"
        show(text)
    for side in result.sides:
        if side.accuracy_unavailable and result.labelled:
            show(f"{side.name}: no accuracy: {side.accuracy_unavailable}")
    if what == NOISE:
        show(
            "Noise leaves where it happens to, and has no accuracy; give --data FOLDER, or A as a "
            "profile whose calibration images are here"
        )
    elif not result.labelled:
        show("No accuracy: the images have no labels; give --data with a folder per class")
    if not result.settled:
        show(
            "Warning: the latencies had not settled before; end other programs and try again",
            style="yellow",
        )


def _range(interval: Interval, form: str) -> str:
    return f"95 %: {interval.low:{form}} to {interval.high:{form}}"
