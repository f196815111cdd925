"""What stops a command from outside, a full disk for one, in one line with the remedy."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys

_MORE_SPACE = "free some space, or choose another place"
_OTHER_PLACE = "choose another place"
_REMEDIES = {
    errno.ENOSPC: _MORE_SPACE,
    errno.EDQUOT: _MORE_SPACE,
    errno.EFBIG: _MORE_SPACE,
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EROFS: _OTHER_PLACE,
    errno.ENOTDIR: _OTHER_PLACE,
    errno.EISDIR: _OTHER_PLACE,
    errno.EEXIST: _OTHER_PLACE,
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "allow more open files with ulimit -n",
    errno.EIO: "look for a failing disk with dmesg",
}
_SHOWN = 60


def failure(error: OSError | MemoryError | UnicodeError) -> str:
    """One line that says what failed and what to do."""
    if isinstance(error, MemoryError):
        return "out of memory; end other programs, or take smaller images and batches"
    if isinstance(error, UnicodeError):
        text = error.object if isinstance(error, UnicodeEncodeError) else ""
        return f"a name is not UTF-8 ({text[:_SHOWN]!a}); rename the file or folder"
    where = error.filename
    if where is None:  # what writes does not know its name
        where = "standard output or a file"
    elif isinstance(where, bytes):
        where = os.fsdecode(where)
    remedy = _REMEDIES.get(error.errno or 0, "look at the place, and at its permissions")
    return f"{where}: {error.strerror or error}; {remedy}"


def drop_output() -> None:
    """Let standard output go nowhere from now on, or Python would try again, and complain, as it
    exits."""
    with contextlib.suppress(OSError, ValueError):  # where tests stand in for it
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def take_any_name() -> None:
    """Let file names that are not UTF-8 be read from standard input and printed, escaped."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
