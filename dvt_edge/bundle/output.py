"""The folder that a build writes: what it may replace, and how it takes its place at one stroke."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dvt_edge.bundle.manifest import (
    COSTS,
    MANIFEST,
    MEASUREMENT,
    SIGNATURE,
)
from dvt_edge.bundle.members import (
    LEFT_BEHIND,
    read_text,
)
from dvt_edge.errors import BundleError
from dvt_edge.files.datasets import printable
from dvt_edge.files.replacing import exchange, flush


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside ``folder`` that takes its place when the block succeeds.

    On failure, Ctrl-C, ``kill -9`` or a power cut the old folder stays as it was, or the new one is
    complete. Only bundles and empty folders are replaced; :func:`check_output` says so beforehand.
    """
    check_path(folder)
    _check_replaceable(folder)
    folder = folder.resolve()  # a link to a bundle stays one
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.new-", dir=folder.parent))
    except OSError as error:
        raise _unwritable(folder, error) from None
    old = new.with_name(new.name.replace(".new-", ".old-"))
    try:
        with _claimed(new):
            yield new
            new.chmod(0o755)
            for path in (*new.iterdir(), new):
                flush(path)
            _check_replaceable(folder)  # somebody may have put a file there meanwhile
            _swap(new, folder, old)
            flush(folder.parent)
    except OSError as error:
        raise BundleError(
            f"{folder}: cannot be written ({error.strerror or error}); free some space, or choose "
            "another output"
        ) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def _swap(new: Path, folder: Path, old: Path) -> None:
    """Put ``new`` in the place of ``folder``; what was there is ``new`` or ``old`` then."""
    if not folder.exists():
        new.rename(folder)
        return
    try:
        exchange(new, folder)
    except OSError:
        # FAT and some network file systems cannot; killed between these two,
        # _remove_abandoned puts the old one back.
        folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            old.rename(folder)
            raise


@contextlib.contextmanager
def _claimed(new: Path) -> Iterator[None]:
    """While a build works in ``new``, no other one removes it as abandoned."""
    descriptor = os.open(new, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Some network file systems have no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed builds left beside ``folder``, or put it back where it is the bundle."""
    name = re.compile(rf"\.{re.escape(folder.name)}\.(new|old)-[a-z0-9_]{{8}}")
    for entry in sorted(os.scandir(folder.parent), key=lambda entry: entry.name):
        found = name.fullmatch(entry.name)
        if not found or not entry.is_dir(follow_symlinks=False):
            continue
        if found[1] == "old" and not folder.exists():
            os.rename(entry.path, folder)
            continue
        with contextlib.suppress(OSError), _claimed_by_none(Path(entry.path)):
            shutil.rmtree(entry.path, ignore_errors=True)


@contextlib.contextmanager
def _claimed_by_none(folder: Path) -> Iterator[None]:
    """Raises :class:`OSError` where a build works in ``folder``."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def check_output(folder: Path) -> None:
    """Find out whether :func:`replaced_folder` will work, before something long is run for it.

    Raises :class:`~dvt_edge.errors.BundleError`; nothing is left behind.
    """
    _check_replaceable(folder)
    try:
        folder = folder.resolve()
        place = next(parent for parent in folder.parents if parent.exists())
        os.rmdir(tempfile.mkdtemp(prefix=f".{folder.name}.new-", dir=place))
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: Exception) -> BundleError:
    reason = getattr(error, "strerror", None) or error
    return BundleError(f"{folder}: cannot be written ({reason}); choose another output")


def _check_replaceable(folder: Path) -> None:
    """Whether nothing is lost with ``folder``: it is not there, empty, or all of it is a bundle."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        mounted = os.path.ismount(folder)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise _unwritable(folder, error) from None
    ours = _written_by_us(folder)
    for entry in entries:
        known = entry.name in ours or LEFT_BEHIND.fullmatch(entry.name)
        if not known or entry.is_dir(follow_symlinks=False):
            raise BundleError(
                f"{folder}: holds something else than a bundle ('{entry.name}'); choose another "
                "output, or empty the folder"
            )
    if mounted:
        raise BundleError(
            f"{folder}: is a mount point, which cannot be replaced; choose a folder in it as output"
        )


def _written_by_us(folder: Path) -> set[str]:
    """Names of the files that a bundle in ``folder`` has, of whatever schema; none where there is
    no manifest of ours, be it that others call theirs the same."""
    try:
        manifest = json.loads(read_text(folder, MANIFEST))
        ours = isinstance(manifest["schema_version"], int) and isinstance(
            manifest["build_key"], str
        )
        return {MANIFEST, COSTS, MEASUREMENT, SIGNATURE, *manifest["files"]} if ours else set()
    except (OSError, BundleError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def check_path(folder: Path) -> None:
    """Raise :class:`~dvt_edge.errors.BundleError` unless the path is text in UTF-8, as what runs
    the stages takes it."""
    if "\0" in str(folder) or printable(folder) != str(folder):
        shown = printable(folder).replace("\0", "\\0")
        raise BundleError(f"{shown}: the path is not text in UTF-8; choose another folder")
