"""Files that a reader sees whole: the old one or the new one, never half of either."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dvt_edge.errors import ConfigError


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block succeeds.

    On failure, Ctrl-C or a power cut the old file stays as it was. Raises :class:`OSError`, which
    names ``path``, if the folder cannot be written or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o644)
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except OSError as error:
        if temporary is None or error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have the disk keep a file, or the names in a folder, before anything relies on them.

    Without that a power cut may leave the new name with nothing in it. Raises :class:`OSError`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(first: Path, second: Path) -> None:
    """Give each of two folders of one file system the other's name, at one stroke.

    Raises :class:`OSError`, also where the file system cannot.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):  # not Linux, or a C library from before 2018
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if libc.renameat2(here, os.fsencode(first), here, os.fsencode(second), swap):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(first))


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all; raises :class:`OSError`."""
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_writable(path: Path) -> None:
    """Find out whether :func:`replaced_file` will work, before something long is run for it.

    Raises :class:`~dvt_edge.errors.ConfigError`.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: cannot be written (it is a folder); give a file's path")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        os.unlink(name)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror or error}); choose another file or make "
            "its folder writable"
        ) from None
