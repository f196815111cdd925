"""Files of a bundle that a stranger may have sent: names, kinds and sizes are checked before
anything is read, and only what lies in the folder itself is."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator

from dvt_edge.errors import BundleError

MOST_TEXT_BYTES = 16 << 20
"""Of a manifest, costs or a measurement; 100,000 class names take 2 MiB."""
MOST_FILE_BYTES = 4 << 30
"""Of any other file."""
MOST_BYTES = 16 << 30
"""Of all files together: they are hashed whenever the bundle is opened."""
MOST_ARRAY_BYTES = 512 << 20
"""Of the arrays in one archive, unpacked: over ten million images at four exits."""

LEFT_BEHIND = re.compile(r"\.(?:(?:manifest|costs|measurement)\.json|model\.sig)\.[a-z0-9_]{8}")
"""Names of what is left where a file of a bundle was being replaced when the power went."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def check_name(name: str) -> str:
    """``name``, which a file of a bundle may have; raises :class:`ValueError`."""
    if not _NAME.fullmatch(name):
        raise ValueError("a file of a bundle is named by letters, digits and . _ -, without folder")
    return name


FileName = Annotated[str, AfterValidator(check_name)]
"""Name of a file in the bundle's folder."""


def check_members(folder: Path, names: Iterable[str]) -> None:
    """Whether all of ``names`` are regular files of ``folder`` and no larger than allowed.

    Raises :class:`~dvt_edge.errors.BundleError`; nothing is opened.
    """
    total = 0
    for name in names:
        try:
            found = os.lstat(folder / name)
        except OSError as error:
            raise BundleError(
                f"{folder / name}: cannot be read ({error.strerror}); rebuild"
            ) from None
        _check(folder / name, found, MOST_FILE_BYTES)
        total += found.st_size
    if total > MOST_BYTES:
        raise BundleError(
            f"{folder}: its files have {total >> 20} MiB, more than the {MOST_BYTES >> 20} MiB of "
            "any bundle; get it from whoever built it, or rebuild"
        )


def open_member(folder: Path, name: str, most_bytes: int = MOST_FILE_BYTES) -> BinaryIO:
    """Open the regular file ``name`` of ``folder`` for reading; links are not followed.

    Raises :class:`~dvt_edge.errors.BundleError` for anything else and for more than ``most_bytes``,
    and :class:`OSError`.
    """
    path = folder / name
    _check(path, os.lstat(path), most_bytes)  # a device is not even opened
    # What it was a moment ago may have been replaced since.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        _check(path, os.fstat(descriptor), most_bytes)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check(path: Path, found: os.stat_result, most_bytes: int) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise BundleError(
            f"{path}: is a link, and a bundle's files lie in its own folder; copy the file there"
        )
    if not stat.S_ISREG(found.st_mode):
        raise BundleError(f"{path}: is not a regular file; get the bundle again, or rebuild")
    if found.st_size > most_bytes:
        raise BundleError(
            f"{path}: has {found.st_size >> 20} MiB, more than the {most_bytes >> 20} MiB that "
            "such a file may have; get the bundle again, or rebuild"
        )


def read_text(folder: Path, name: str) -> str:
    """A text file of ``folder``, in UTF-8.

    Raises as :func:`open_member`, and :class:`UnicodeDecodeError`.
    """
    with open_member(folder, name, MOST_TEXT_BYTES) as file:
        return file.read(MOST_TEXT_BYTES).decode()


def member_sha256(folder: Path, name: str) -> str:
    """SHA-256 of a file of ``folder``, in hexadecimal; raises BundleError."""
    try:
        with open_member(folder, name) as file:
            return sha256(file)
    except OSError as error:
        raise BundleError(f"{folder / name}: cannot be read ({error.strerror}); rebuild") from None


def sha256(file: BinaryIO) -> str:
    """SHA-256 of what is left to read, in hexadecimal; raises :class:`OSError`."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def read_arrays(
    folder: Path, name: str, most_bytes: int = MOST_ARRAY_BYTES
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an npz archive by their names, at most ``most_bytes`` unpacked.

    Raises :class:`~dvt_edge.errors.BundleError`.
    """
    try:
        with open_member(folder, name) as file, np.load(file, allow_pickle=False) as archive:
            # zipfile unpacks no more of an entry than is declared.
            size = sum(entry.file_size for entry in archive.zip.infolist())
            if size > most_bytes:
                raise ValueError(f"{size >> 20} MiB unpacked, {most_bytes >> 20} MiB are allowed")
            arrays = {key: archive[key] for key in archive.files}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("it holds something else than arrays")
            return arrays
    except BundleError:
        raise
    except Exception as error:  # zipfile, its codecs and NumPy raise whatever they like
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BundleError(f"{folder / name}: unusable ({reason}); rebuild") from None
