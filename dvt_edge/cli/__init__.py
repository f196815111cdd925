"""The ``dvt-edge`` command: parses, calls the library, prints, maps errors to exit codes.

Exit codes: 0 done, 1 an error (one line on stderr) or at least one image failed, 2 a wrong command
line, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from dvt_edge.cli.commands import cli
from dvt_edge.errors import DvtEdgeError

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process."""
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        result = cli.main(args=None if args is None else list(args), standalone_mode=False)
    except DvtEdgeError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; what was there before is unchanged", err=True)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; nobody is left to tell
        return 1
    return result if isinstance(result, int) else 0
