"""``dvt-edge doctor``: what this machine has and lacks, one line each."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from pathlib import Path

import click

from dvt_edge.cli.options import FILE, json_option
from dvt_edge.cli.output import print_json
from dvt_edge.doctor import Finding, examine
from dvt_edge.profile import Profile

WIDTH = 100
_INDENT = 25
_COLORS = {"ok": "green", "missing": "yellow", "broken": "red"}


@click.command("doctor")
@click.option("--profile", "profile_file", type=FILE, help="Require what this profile needs.")
@json_option
def command(profile_file: Path | None, as_json: bool) -> int:
    """Show what this machine has and lacks: libraries, driver, board, sensors, cameras."""
    profile = Profile.from_yaml(profile_file) if profile_file else None
    findings = examine(profile=profile)
    lacking = [finding for finding in findings if finding.blocks]
    if as_json:
        values = {"findings": [asdict(finding) for finding in findings], "ok": not lacking}
        print_json(values)
    else:
        for finding in findings:
            _print(finding)
        click.echo()
        if lacking:
            click.echo(
                f"Missing or not working: {', '.join(f.name for f in lacking)}. Follow "
                "the arrows, then run dvt-edge doctor again."
            )
        else:
            click.echo("This machine has everything it needs.")
    return 1 if lacking else 0


def _print(finding: Finding) -> None:
    """One finding, with what to do below it."""
    indent = " " * _INDENT
    optional = "" if finding.state == "ok" or finding.required else "optional: "
    detail = textwrap.fill(
        optional + finding.detail,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )
    state = click.style(f"{finding.state:9}", fg=_COLORS[finding.state])
    click.echo(f"{state}{finding.name:{_INDENT - 9}}{detail[_INDENT:]}")
    if finding.state != "ok" and finding.remedy:  # never wrapped: to be copied
        click.echo(f"{indent}-> {finding.remedy}")
