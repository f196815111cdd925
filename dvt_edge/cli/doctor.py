"""``dvt-edge doctor``: what this machine has and lacks, one line each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
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
@click.option("--profile", "profile_file", type=FILE, help="Judge by what this profile needs.")
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
        print_findings(findings)
    return 1 if lacking else 0


def print_findings(findings: Sequence[Finding]) -> None:
    """One line per finding with what to do below it; at the end, what must be done."""
    for finding in findings:
        state = click.style(f"{finding.state:9}", fg=_COLORS[finding.state])
        detail = finding.detail
        if finding.state != "ok" and not finding.required:
            detail = f"optional: {detail}"
        lines = textwrap.wrap(detail, WIDTH - _INDENT, break_on_hyphens=False) or [""]
        click.echo(f"{state}{finding.name:{_INDENT - 9}}{lines[0]}")
        for line in lines[1:]:
            click.echo(" " * _INDENT + line)
        if finding.state != "ok" and finding.remedy:  # never wrapped: to be copied
            click.echo(" " * _INDENT + f"-> {finding.remedy}")
    lacking = [finding.name for finding in findings if finding.blocks]
    click.echo()
    if lacking:
        click.echo(
            f"Needed here and not ready: {', '.join(lacking)}. Do what the arrows say, then run "
            "dvt-edge doctor again."
        )
    else:
        click.echo("Everything that this machine needs is there.")
