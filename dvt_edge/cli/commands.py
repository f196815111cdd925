"""The commands of ``dvt-edge``."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

import dvt_edge
from dvt_edge.cli.budget import show_budget
from dvt_edge.cli.classify import classify_paths
from dvt_edge.errors import BuildError
from dvt_edge.profile import BudgetConfig, Profile

if TYPE_CHECKING:
    from dvt_edge.runtime.session import Event

_FILE = click.Path(dir_okay=False, path_type=Path)
profile_option = click.option(
    "--profile", "profile_file", type=_FILE, required=True, help="The profile (YAML)."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(dvt_edge.__version__, prog_name="dvt-edge")
def cli() -> None:
    """Dynamic Vision Transformers on edge devices, within a latency budget."""


@cli.command()
@click.option("--config", "config_file", type=_FILE, required=True, help="The training YAML.")
@click.option("--resume", is_flag=True, help="Continue an interrupted run.")
@json_option
def train(config_file: Path, resume: bool, as_json: bool) -> None:
    """Train a cascade: one run, one loss over all exits."""
    _needs_torch("train")
    from dvt_edge.cli.training import train_with_progress

    train_with_progress(config_file, resume=resume, as_json=as_json)


@cli.command()
@profile_option
@click.option(
    "--phase",
    type=click.Choice(["auto", "host", "device"]),
    default="auto",
    show_default=True,
    help="host: checkpoint to portable bundle; device: from there to engines.",
)
@click.option("--force", is_flag=True, help="Build all anew, even if nothing changed.")
@json_option
def build(
    profile_file: Path, phase: Literal["auto", "host", "device"], force: bool, as_json: bool
) -> None:
    """Build the bundle: one quantized graph or engine per stage, records, manifest."""
    from dvt_edge.cli.building import build_with_progress

    build_with_progress(profile_file, phase, force=force, as_json=as_json)


class _Pace(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic from 8.3 on
    """Frames per second; ``none`` and 0 are no pace."""

    name = "fps"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if str(value).lower() == "none":
            return 0.0
        fps = click.FLOAT.convert(value, param, ctx)
        if not (fps == 0 or 0.1 <= fps <= 10_000):  # NaN too
            self.fail(f"{value} is not in 0.1..10000 frames per second, nor 'none'", param, ctx)
        return float(fps)


@cli.command("profile")
@profile_option
@click.option(
    "--data", type=click.Path(path_type=Path), help="Images to try the thresholds on, by class."
)
@click.option(
    "--duration",
    type=click.FloatRange(0.5, 3600),
    default=10.0,
    show_default=True,
    help="Seconds of timing; where a power sensor can be read, energy takes about twice as long "
    "besides.",
)
@click.option(
    "--pace",
    type=_Pace(),
    default=30.0,
    show_default=True,
    help="Frames per second of the camera to imitate for half of the time, or none.",
)
@click.option(
    "--solve-for",
    type=click.Choice(["back-to-back", "paced"]),
    default="back-to-back",
    show_default=True,
    help="Which of the two latencies the thresholds shall keep the budget with.",
)
@click.option("--report", type=_FILE, help="Write a report (HTML) for people.")
@click.option(
    "--json",
    "json_file",
    type=_FILE,
    is_flag=False,
    flag_value="-",
    help="Write everything as JSON; '-' or nothing is standard output.",
)
def profile_command(
    profile_file: Path,
    data: Path | None,
    duration: float,
    pace: float,
    solve_for: str,
    report: Path | None,
    json_file: Path | None,
) -> None:
    """Measure what each exit costs on this machine, and choose thresholds by it."""
    from dvt_edge.cli.profiling import profile_command as run

    if solve_for == "paced" and not pace:
        raise click.UsageError("--solve-for paced needs a --pace")
    run(
        profile_file,
        duration_s=duration,
        pace_fps=pace or None,
        paced_costs=solve_for == "paced",
        data=data,
        json_file=json_file,
        report_file=report,
    )


@cli.command()
@profile_option
@click.argument("paths", nargs=-1, required=True)
@click.option("--deadline-ms", type=float, help="Best answer within this time, per image.")
@click.option("--explain", is_flag=True, help="Say why each image left where it did.")
@json_option
def classify(
    profile_file: Path,
    paths: tuple[str, ...],
    deadline_ms: float | None,
    explain: bool,
    as_json: bool,
) -> int:
    """Classify image files and folders; '-' reads a list of paths from standard input."""
    from dvt_edge.runtime.runtime import Runtime

    with Runtime(profile_file, on_event=_note) as runtime:
        return classify_paths(
            runtime, paths, as_json=as_json, explain=explain, deadline_ms=deadline_ms
        )


@cli.command("eval")
@profile_option
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder with one subfolder per class, as ImageNet's.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the results and, while it runs, the progress [default: beside the bundle].",
)
@click.option("--workers", type=click.IntRange(1, 256), default=2, show_default=True)
@json_option
def eval_command(
    profile_file: Path, data: Path, output: Path | None, workers: int, as_json: bool
) -> int:
    """Evaluate every exit on labelled images: top-1, top-5, the budgeted curve."""
    from dvt_edge.cli.evaluating import evaluate_folder
    from dvt_edge.runtime.runtime import Runtime

    profile = Profile.from_yaml(profile_file)
    folder = output or profile.output.with_name(f"{profile.output.name}-eval")
    anything = profile.model_copy(update={"budget": BudgetConfig(max_stage=1)})
    with Runtime(anything, on_event=_note) as runtime:
        return evaluate_folder(runtime, data, folder, workers=workers, as_json=as_json)


@cli.command()
@profile_option
@click.option("--latency-ms", type=float, help="Another limit of the latency per frame.")
@click.option("--statistic", type=click.Choice(["mean", "p50", "p95", "p99", "max"]))
@click.option("--energy-mj", type=float, help="Limit of the mean energy per frame.")
@click.option("--min-accuracy", type=float, help="Cheapest thresholds of this accuracy, 0..1.")
@click.option("--max-stage", type=int, help="No stage after this one, from 1.")
@click.option("--confidence-level", type=float, help="Certify, such as 0.95.")
@click.option("--plot", type=_FILE, help="Write the frontier as a picture (PNG, SVG, PDF).")
@json_option
def budget(profile_file: Path, plot: Path | None, as_json: bool, **changes: Any) -> None:
    """Show what a budget gives, from the stored records; options replace the profile's keys."""
    from dvt_edge.runtime.runtime import Runtime

    profile = Profile.from_yaml(profile_file)
    # The profile's own budget may be impossible; what counts here is the one that is asked about.
    anything = profile.model_copy(update={"budget": BudgetConfig(max_stage=1)})
    with Runtime(anything, on_event=_note) as runtime:
        given = {key: value for key, value in changes.items() if value is not None}
        runtime.set_budget(profile.budget, **given)
        show_budget(runtime, as_json=as_json, plot=plot)


@cli.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path), required=False)
@click.option("--against", type=_FILE, help="Any ONNX classifier: one image in, scores out.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Images, by class for accuracy [default: A's calibration images, or noise].",
)
@click.option(
    "--duration",
    type=click.FloatRange(0.5, 3600),
    default=10.0,
    show_default=True,
    help="Seconds at least; every image is given once in any case.",
)
@json_option
def compare(
    a: Path, b: Path | None, against: Path | None, data: Path | None, duration: float, as_json: bool
) -> None:
    """Compare A with B, or with any ONNX classifier, in turns on the same images.

    A and B are profiles (YAML) or folders of bundles; each keeps its own budget.
    """
    from dvt_edge.cli.comparing import compare_and_show

    if b is None and against is None:
        raise click.UsageError("give B, or --against model.onnx, to compare A with")
    for path in (a, b):
        if path is not None and path.suffix == ".onnx":
            raise click.UsageError(f"{path} is no profile or bundle; give it by --against {path}")
    compare_and_show(
        [path for path in (a, b) if path is not None],
        against,
        data,
        duration_s=duration,
        as_json=as_json,
        note=_note,
    )


@cli.command("import")
@click.argument("file", type=_FILE, required=False)
@click.option("--architecture", "name", help="Its name; without it the tensors tell.")
@click.option("-o", "--output", type=_FILE, required=True, help="The .safetensors to write.")
@click.option("--stage-from", type=_FILE, help="A ViT or DeiT that starts a new cascade.")
@click.option("--classes", type=click.IntRange(2), help="Of the new cascade.")
@click.option("--image-size", type=click.IntRange(4), help="Of the new cascade, in pixels.")
@json_option
def import_command(
    file: Path | None,
    name: str | None,
    output: Path,
    stage_from: Path | None,
    classes: int | None,
    image_size: int | None,
    as_json: bool,
) -> None:
    """Import a checkpoint of the authors' release, or start a cascade from one backbone.

    FILE is the authors' .pth.tar, a state dict, or a model fine-tuned from either. With
    --stage-from there is no FILE; --architecture says what the new cascade is.
    """
    if (file is None) == (stage_from is None):
        raise click.UsageError("give either FILE or --stage-from FILE")
    if stage_from is None and (classes or image_size):
        raise click.UsageError("--classes and --image-size belong to --stage-from")
    if stage_from is not None and name is None:
        raise click.UsageError("--stage-from needs --architecture")
    if output.suffix != ".safetensors":
        raise click.UsageError(f"the output is a .safetensors file, found '{output.name}'")
    _needs_torch("import")
    from dvt_edge.cli.importing import import_and_save

    sizes = (classes, image_size)
    values = import_and_save(file, stage_from, name, sizes, output)
    if as_json:
        _print_json(values)
        return
    for line in values.pop("lines"):
        click.echo(line)


@cli.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--onnx-ops", is_flag=True, help="Count the operators of a bundle's graphs.")
@json_option
def inspect(path: Path, onnx_ops: bool, as_json: bool) -> None:
    """Show what is inside a bundle or a .safetensors checkpoint."""
    from dvt_edge.cli.inspection import inspect_bundle, inspect_checkpoint

    if path.is_file():
        _needs_torch("inspect")
        inspect_checkpoint(path, as_json=as_json)
    else:
        inspect_bundle(path, as_json=as_json, onnx_ops=onnx_ops)


@cli.command()
@click.option("--profile", "profile_file", type=_FILE, help="Judge by what this profile needs.")
@json_option
def doctor(profile_file: Path | None, as_json: bool) -> int:
    """Show what this machine has and lacks: libraries, driver, board, sensors, cameras."""
    from dvt_edge.cli.doctor import show_findings

    profile = Profile.from_yaml(profile_file) if profile_file else None
    return show_findings(profile, as_json=as_json)


def _note(event: Event) -> None:
    click.echo(f"note: {event.reason}", err=True)


def _needs_torch(command: str) -> None:
    missing = [
        name for name in ("torch", "onnx", "safetensors") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise BuildError(
            f"'dvt-edge {command}' needs {', '.join(missing)}; install them with "
            "pip install 'dvt-edge[export]'"
        )


def _print_json(values: dict[str, Any]) -> None:
    click.echo(json.dumps(values, allow_nan=False))
