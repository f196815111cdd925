"""The ``dvt-edge`` command: parses, calls the library, prints, maps errors to exit codes.

Each command is a module of its name, with its options; only the one that is run is imported.
Exit codes: 0 done, 1 an error (one line on stderr) or at least one image failed, 2 a wrong command
line, 130 interrupted. An error is what the library raises on purpose, or what stops a command from
outside, such as a full disk (``failures.py``); anything else is a defect, and shows its traceback.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

import dvt_edge
from dvt_edge.cli.failures import drop_output, failure, take_any_name
from dvt_edge.errors import DvtEdgeError

__all__ = ["main"]

_MODULES = {
    "import": "import_",
    "train": "train",
    "build": "build",
    "profile": "profile",
    "classify": "classify",
    "cameras": "cameras",
    "run": "run_",
    "eval": "eval",
    "budget": "budget",
    "compare": "compare",
    "inspect": "inspect",
    "sign": "sign",
    "verify": "verify",
    "doctor": "doctor",
}
"""Command -> module, in the order in which one comes to need them."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return None
        module = importlib.import_module(f"dvt_edge.cli.{_MODULES[cmd_name]}")
        command: click.Command = module.command
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(dvt_edge.__version__, prog_name="dvt-edge")
def cli() -> None:
    """Deploy Dynamic Vision Transformers on edge devices, within a latency or energy budget."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process."""
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    take_any_name()
    try:
        result = cli.main(args=None if args is None else list(args), standalone_mode=False)
        sys.stdout.flush()
    except DvtEdgeError as error:
        return _failed(str(error))
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; what was there before is unchanged", err=True)
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        drop_output()
        return 1
    except (OSError, MemoryError, UnicodeError) as error:
        drop_output()
        return _failed(failure(error))
    return result if isinstance(result, int) else 0


def _failed(message: str) -> int:
    """Print an error in one line, whatever is in it."""
    click.echo(f"error: {' '.join(message.splitlines())}", err=True)
    return 1
