"""``dvt-edge cameras``: what is attached to this machine, and the line that uses it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from dvt_edge.camera.attached import Attached, find_attached
from dvt_edge.camera.v4l2 import PixelFormat
from dvt_edge.cli.options import json_option
from dvt_edge.cli.output import print_json

ROOT = Path("/")
NONE = """No camera is attached: there is no /dev/video* that takes pictures.
  -> connect one (CSI: sudo /opt/nvidia/jetson-io/jetson-io.py sets the connector); give containers
     --device /dev/video0
  -> a network camera needs no listing: --source 'rtsp://user:${PASSWORD}@host/stream'
  -> without a camera: --source test://"""
SHOWN_SIZES = 6


@click.command("cameras")
@json_option
def command(as_json: bool) -> int:
    """List attached cameras, what they deliver, and the line to paste for each."""
    found = find_attached(ROOT)
    if as_json:
        print_json({"cameras": [_values(camera) for camera in found]})
        return 0
    if not found:
        click.echo(NONE)
        return 0
    for camera in found:
        _print(camera)
    return 0


def _values(camera: Attached) -> dict[str, Any]:
    size = camera.size
    return {
        "source": camera.uri,
        "fps": size.fps[0] if size and size.fps else None,
        "frame": [size.width, size.height] if size else None,
        "remark": camera.remark,
        "device": asdict(camera.device),
    }


def _print(camera: Attached) -> None:
    device = camera.device
    what = ", ".join(part for part in (device.name, device.driver, camera.remark) if part)
    click.echo(f"{click.style(device.path, bold=True)}  {what}")
    for form in device.formats:
        click.echo(f"  {form.code}  {_sizes(form)}")
    if device.problem:
        click.echo("  -> sudo usermod -aG video $USER, then log in again")
        return
    click.echo(f"  --source '{camera.uri}'")
    click.echo(f"  {camera.profile_line}")


def _sizes(form: PixelFormat) -> str:
    """The largest ones."""
    sizes = sorted(form.sizes, key=lambda size: -size.width * size.height)
    shown = [
        f"{size.width}x{size.height}" + (f" at {size.fps[0]:g} fps" if size.fps else "")
        for size in sizes[:SHOWN_SIZES]
    ]
    more = len(sizes) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
