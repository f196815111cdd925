"""Options that more than one command takes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class _Path(click.Path):
    """A path that is there: an empty one would be the current folder, and shells leave ``~`` as it
    is behind an equals sign."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):
            self.fail("the path is empty", param, ctx)
        return super().convert(os.path.expanduser(value), param, ctx)


FILE = _Path(dir_okay=False, path_type=Path)
FOLDER = _Path(file_okay=False, path_type=Path)
PATH = _Path(path_type=Path)

profile_option = click.option(
    "--profile", "profile_file", type=FILE, required=True, help="The profile (YAML)."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def _number(context: click.Context, option: click.Parameter, value: float) -> float:
    """FloatRange lets NaN pass."""
    if math.isnan(value):
        raise click.BadParameter("expected a number of seconds", context, option)
    return value


def duration_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--duration``, in seconds; ``text`` says what for."""
    return click.option(
        "--duration",
        "duration_s",
        type=click.FloatRange(0.5, 3600),
        default=10.0,
        show_default=True,
        callback=_number,
        help=text,
    )
