"""``dvt-edge run``: classify what a camera sees, until it ends or is ended."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from dvt_edge.app.annotate import AnnotatedVideo, video_paths
from dvt_edge.app.jsonl import JsonLines
from dvt_edge.app.loop import CameraLoop, Note, Seen
from dvt_edge.app.mqtt import Mqtt
from dvt_edge.app.opening import beside, camera_name, camera_names, check_uri, opener
from dvt_edge.app.outputs import Output, Outputs
from dvt_edge.app.record import about_recording, open_recordings
from dvt_edge.app.summary import summary_lines, summary_values
from dvt_edge.app.supervise import run_to_the_end
from dvt_edge.app.values import note_of
from dvt_edge.cli.options import PATH, json_option, profile_option
from dvt_edge.cli.output import note, print_json
from dvt_edge.errors import ConfigError, SourceError
from dvt_edge.profile import Profile
from dvt_edge.runtime.events import StandInsRun, kind_of
from dvt_edge.runtime.runtime import Runtime
from dvt_edge.serve import LivePage


class _Notes:
    """A sink that shows events as notes on standard error."""

    def take(self, seen: Seen) -> None:
        pass

    def event(self, event: Note) -> None:
        if event.kind == kind_of(StandInsRun):  # which has been logged
            return
        named = event.source is None or event.source in event.reason
        note(event.reason if named else f"{event.source}: {event.reason}")

    def close(self) -> None:
        pass


def _boxes_of(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[int, ...], ...]:
    """Each ``X,Y,W,H`` as a box."""
    boxes = []
    for value in values:
        found = re.fullmatch(r"(\d+),(\d+),([1-9]\d*),([1-9]\d*)", value)
        if found is None:
            text = (
                "expected X,Y,W,H: left and top edge, width and height in pixels, such as "
                f"100,0,640,480; found {value!r}"
            )
            raise click.BadParameter(text, context, option)
        boxes.append(tuple(map(int, found.groups())))
    return tuple(boxes)


def _positive(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """FloatRange lets NaN pass."""
    if value is not None and not 0 < value < math.inf:
        raise click.BadParameter("expected a positive number", context, option)
    return value


@click.command("run")
@profile_option
@click.option(
    "--source",
    "sources",
    multiple=True,
    help="URI of the camera; the profile's camera.source if left out. Repeat it for several.",
)
@click.option(
    "--roi",
    "rois",
    metavar="X,Y,W,H",
    multiple=True,
    callback=_boxes_of,
    help="Classify this part of the picture, in pixels; of several cameras one for all, or one for "
    "each --source, in order.",
)
@click.option(
    "--regroup-ms",
    type=float,
    callback=_positive,
    help="With several cameras: let a frame wait so long after stage 1 for others, to run the "
    "later stages together, where that is measured to pay.",
)
@click.option("--jsonl", metavar="FILE", help="Append answers and events to it; '-' prints them.")
@click.option(
    "--mqtt",
    metavar="URL",
    envvar="DVT_EDGE_MQTT",
    help="Publish them: mqtt://user:password@host:1883/topic. Also read from DVT_EDGE_MQTT.",
)
@click.option("--annotate", type=PATH, help="Write a video with the answers to this file.")
@click.option("--record", type=PATH, help="Keep frames and answers in this folder, for replay://.")
@click.option(
    "--serve",
    metavar="HOST:PORT",
    help="Show a page with the picture, its figures and a budget to move: 127.0.0.1:8080.",
)
@click.option(
    "--serve-token",
    help="What viewers must know. Also read from DVT_EDGE_TOKEN; made where --serve is not this "
    "machine's own address.",
)
@click.option("--max-frames", type=click.IntRange(1), help="End after so many frames.")
@click.option(
    "--duration", "duration_s", type=float, callback=_positive, help="End after so many seconds."
)
@click.option("--every-frame", is_flag=True, help="Leave none out, however late: for files.")
@click.option(
    "--deadline-ms", type=float, callback=_positive, help="Give the best answer within this time."
)
@json_option
def command(
    profile_file: Path,
    sources: tuple[str, ...],
    rois: tuple[tuple[int, ...], ...],
    regroup_ms: float | None,
    jsonl: str | None,
    mqtt: str | None,
    annotate: Path | None,
    record: Path | None,
    serve: str | None,
    serve_token: str | None,
    max_frames: int | None,
    duration_s: float | None,
    every_frame: bool,
    deadline_ms: float | None,
    as_json: bool,
) -> int:
    """Classify a camera's frames, the newest first, until it ends, Ctrl-C or SIGTERM.

    Shows how it does, and in the end what it came to. '--json' prints that as JSON. Several
    cameras share the stages; one that fails does not hold up the others.
    """
    if serve_token is not None and serve is None:
        raise click.UsageError("--serve-token belongs to --serve")
    profile = Profile.from_yaml(profile_file)
    uris = _uris(sources, profile, profile_file.parent)
    if len(uris) == 1 and regroup_ms is not None:
        raise click.UsageError("--regroup-ms is for several cameras: repeat --source")
    boxes = _boxes(rois, len(uris))
    names = camera_names(uris)
    # Standard output is for JSON where that was asked for.
    text_to_stderr = as_json or jsonl == "-"
    console = Console(stderr=text_to_stderr, markup=False, highlight=False)
    with Outputs(every_frame=every_frame) as outputs:
        outputs.sinks.add("notes", _Notes())
        # Whatever can be wrong with the arguments is found before the stages are loaded.
        _open_outputs(outputs, names, jsonl, mqtt, annotate)
        page = None if serve is None else LivePage(serve, serve_token)
        if page is not None:
            outputs.add("serve", page)
        runtime = Runtime(profile, regroup_ms=regroup_ms)
        stuck = False
        try:
            if record is not None:
                _record(outputs, names, record, runtime.bundle.manifest.content_hash)
            _watch(runtime, outputs)
            _start_page(page, runtime)
            loops = [
                CameraLoop(
                    name,
                    opener(uri, every_frame=every_frame),
                    runtime,
                    outputs.sinks,
                    exits=len(runtime.costs.exits),
                    deadline_ms=deadline_ms,
                    max_frames=max_frames,
                    box=box,
                )
                for name, uri, box in zip(names, uris, boxes, strict=True)
            ]
            ended = run_to_the_end(loops, outputs, runtime, console, duration_s=duration_s)
            stuck = ended.stuck
        finally:
            if not stuck:  # a frame that does not end would be waited for
                runtime.close()
    values = summary_values(loops, ended, outputs)
    errors = [loop.error for loop in loops if loop.error is not None]
    if errors and not values["captured"]:  # there is nothing to sum up
        raise errors[0] if len(errors) == 1 else SourceError("; ".join(map(str, errors)))
    if as_json:
        print_json(values)
    else:
        for line in summary_lines(values):
            click.echo(line, err=text_to_stderr)
    if errors and len(loops) == 1:
        raise errors[0]
    return 0 if outputs.complete and not values["failed"] and not errors else 1


def _uris(sources: Sequence[str], profile: Profile, folder: Path) -> list[str]:
    """Of all cameras.

    Raises :class:`click.UsageError` for none, and for one given twice;
    :class:`~dvt_edge.errors.ConfigError` for one that means nothing, and for several under a budget
    that is for one.
    """
    if not sources:
        if profile.camera.source is None:
            raise click.UsageError("no camera: give --source, or camera.source in the profile")
        sources = [beside(profile.camera.source, folder)]
    for at, uri in enumerate(sources):
        if uri in sources[:at]:
            raise click.UsageError(f"--source {camera_name(uri)} is given twice")
        check_uri(uri)
    if len(sources) > 1 and profile.budget.video:
        raise ConfigError(
            "budget.video compares consecutive frames of one camera; take it out of the profile, "
            "or start 'dvt-edge run' once for each camera"
        )
    return list(sources)


def _boxes(rois: Sequence[tuple[int, ...]], cameras: int) -> list[tuple[int, ...] | None]:
    """One for each camera; raises :class:`click.UsageError` for another number."""
    if not rois:
        return [None] * cameras
    if len(rois) not in (1, cameras):
        raise click.UsageError(
            f"--roi is given {len(rois)} times for {cameras} cameras: give one for all, or one for "
            "each --source"
        )
    return list(rois) if len(rois) == cameras else [rois[0]] * cameras


def _watch(runtime: Runtime, outputs: Outputs) -> None:
    """Give the outputs all events, also those from while the Runtime opened."""
    for event in runtime.events:
        outputs.sinks.event(note_of(event))
    runtime.watch(on_event=lambda event: outputs.sinks.event(note_of(event)))


def _start_page(page: LivePage | None, runtime: Runtime) -> None:
    if page is not None:
        page.start(runtime)
        note(f"look at {page.url}")


def _open_outputs(
    outputs: Outputs,
    names: Sequence[str],
    jsonl: str | None,
    mqtt: str | None,
    annotate: Path | None,
) -> None:
    if jsonl is not None:
        outputs.add("jsonl", JsonLines(jsonl, outputs.sinks.note))
    if annotate is not None:
        videos = [AnnotatedVideo(path) for path in video_paths(annotate, len(names))]
        _add_each(outputs, "annotate", videos, names)
    if mqtt is not None:
        outputs.add("mqtt", Mqtt(mqtt, outputs.sinks.note))


def _record(outputs: Outputs, names: Sequence[str], folder: Path, content_hash: str) -> None:
    abouts = [about_recording(name, content_hash) for name in names]
    _add_each(outputs, "record", open_recordings(folder, abouts, outputs.sinks.note), names)


def _add_each(outputs: Outputs, kind: str, made: Sequence[Output], names: Sequence[str]) -> None:
    """One output for each camera, numbered where there are several."""
    for k, (output, name) in enumerate(zip(made, names, strict=True), start=1):
        outputs.add_slow(kind if len(names) == 1 else f"{kind} {k}", output, name)
