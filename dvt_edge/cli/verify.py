"""``dvt-edge verify``."""

from __future__ import annotations

from pathlib import Path

import click

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.cli.options import FILE, PATH
from dvt_edge.cli.output import show


@click.command("verify")
@click.argument("bundle", type=PATH)
@click.option("--key", type=FILE, required=True, help="The signer's public key (PEM).")
def command(bundle: Path, key: Path) -> None:
    """Say whether a bundle is what the owner of a key signed, and sound."""
    opened = Bundle(bundle, [key])
    show(f"{opened.folder}: signed with {key}, {len(opened.manifest.files) + 1} files unchanged")
