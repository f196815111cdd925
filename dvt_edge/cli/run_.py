"""``dvt-edge run``: classify what a camera sees, until it ends or is ended."""

from __future__ import annotations

import math
from pathlib import Path

import click
from rich.console import Console

from dvt_edge.app.annotate import AnnotatedVideo
from dvt_edge.app.jsonl import JsonLines
from dvt_edge.app.loop import CameraLoop, Note, Seen
from dvt_edge.app.mqtt import Mqtt
from dvt_edge.app.opening import beside, camera_name, opener
from dvt_edge.app.outputs import Outputs
from dvt_edge.app.record import Recording, about_recording
from dvt_edge.app.summary import summary_lines, summary_values
from dvt_edge.app.supervise import run_to_the_end
from dvt_edge.app.values import note_of
from dvt_edge.cli.options import PATH, json_option, profile_option
from dvt_edge.cli.output import note, print_json
from dvt_edge.profile import Profile
from dvt_edge.runtime.runtime import Runtime
from dvt_edge.serve import LivePage


class _Notes:
    """A sink that shows events as notes on standard error."""

    def take(self, seen: Seen) -> None:
        pass

    def event(self, event: Note) -> None:
        named = event.source is None or event.source in event.reason
        note(event.reason if named else f"{event.source}: {event.reason}")

    def close(self) -> None:
        pass


def _positive(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """FloatRange lets NaN pass."""
    if value is not None and not 0 < value < math.inf:
        raise click.BadParameter("expected a positive number", context, option)
    return value


@click.command("run")
@profile_option
@click.option("--source", help="URI of the camera; the profile's camera.source if left out.")
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
    source: str | None,
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

    Shows how it does, and in the end what it came to. '--json' prints that as JSON.
    """
    if serve_token is not None and serve is None:
        raise click.UsageError("--serve-token belongs to --serve")
    profile = Profile.from_yaml(profile_file)
    uri = source or profile.camera.source
    if uri is None:
        raise click.UsageError("no camera: give --source, or camera.source in the profile")
    if not source:
        uri = beside(uri, profile_file.parent)
    name = camera_name(uri)
    # Standard output is for JSON where that was asked for.
    text_to_stderr = as_json or jsonl == "-"
    console = Console(stderr=text_to_stderr, markup=False, highlight=False)
    with Outputs(every_frame=every_frame) as outputs:
        outputs.sinks.add("notes", _Notes())
        # Whatever can be wrong with the arguments is found before the stages are loaded.
        _open_outputs(outputs, jsonl, mqtt, annotate)
        page = None if serve is None else LivePage(serve, serve_token)
        if page is not None:
            outputs.add("serve", page)
        runtime = Runtime(profile)
        stuck = False
        try:
            if record is not None:
                about = about_recording(name, runtime.bundle.manifest.content_hash)
                outputs.add_slow("record", Recording(record, about, outputs.sinks.note))
            _watch(runtime, outputs)
            _start_page(page, runtime)
            loop = CameraLoop(
                name,
                opener(uri, every_frame=every_frame),
                runtime,
                outputs.sinks,
                exits=len(runtime.costs.exits),
                deadline_ms=deadline_ms,
                max_frames=max_frames,
            )
            ended = run_to_the_end([loop], outputs, runtime, console, duration_s=duration_s)
            stuck = ended.stuck
        finally:
            if not stuck:  # a frame that does not end would be waited for
                runtime.close()
    values = summary_values([loop], ended, outputs)
    if loop.error is not None and not values["captured"]:
        raise loop.error  # there is nothing to sum up
    if as_json:
        print_json(values)
    else:
        for line in summary_lines(values):
            click.echo(line, err=text_to_stderr)
    if loop.error is not None:
        raise loop.error
    return 0 if outputs.complete and not values["failed"] else 1


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
    outputs: Outputs, jsonl: str | None, mqtt: str | None, annotate: Path | None
) -> None:
    if jsonl is not None:
        outputs.add("jsonl", JsonLines(jsonl, outputs.sinks.note))
    if annotate is not None:
        outputs.add_slow("annotate", AnnotatedVideo(annotate))
    if mqtt is not None:
        outputs.add("mqtt", Mqtt(mqtt, outputs.sinks.note))
