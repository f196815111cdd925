"""``dvt-edge sign``."""

from __future__ import annotations

from pathlib import Path

import click

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.manifest import SIGNATURE
from dvt_edge.bundle.signature import sign
from dvt_edge.cli.options import FILE, PATH
from dvt_edge.cli.output import show


@click.command("sign")
@click.argument("bundle", type=PATH)
@click.option("--key", type=FILE, required=True, help="The private key (PEM, elliptic curve).")
def command(bundle: Path, key: Path) -> None:
    """Sign a bundle, for profiles that trust your public key with bundle.trusted_keys."""
    opened = Bundle(bundle)
    sign(opened.folder, opened.manifest.files, key)
    show(f"Signed: {opened.folder / SIGNATURE}")
