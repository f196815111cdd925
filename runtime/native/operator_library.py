"""Finds the operators for ONNX Runtime and says which instruction sets they run on here.

A session needs ``options.register_custom_ops_library(str(path()))`` before it opens a graph that
has nodes of the domain ``dvt_edge``; ``docs/adr/0003-native-operators.md`` describes them.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

from dvt_edge.runtime.native.library import find

LIBRARY = "libdvt_edge_operators.so"
VERSION = 1
"""Of the operators' interface that graphs are written for."""
PLAIN = "plain"
"""The set for processors that have none of the others: C++ without any instructions of its own, and
slower than ONNX Runtime's nodes."""


def path() -> Path | None:
    """The library, or None; :func:`unavailable` then says why."""
    return _load()[1]


def unavailable() -> str | None:
    """Why stages are not to run on the operators, and what to do about it; None where they are."""
    if instruction_sets() == [PLAIN]:
        return (
            "this processor has none of the instructions that they are made for (AVX2, AVX-512 "
            "VNNI, Arm's dot products); ONNX Runtime's own are faster here"
        )
    return _load()[2]


def instruction_sets() -> list[str]:
    """Those of this processor, the fastest first and the plain one last; empty without library."""
    library = _load()[0]
    names: list[str] = []
    while library and (name := library.dvt_operators_set(len(names))):
        names.append(name.decode())
    return names


def instruction_set() -> str | None:
    """The one that sessions opened from now on take; None without library."""
    library = _load()[0]
    return str(library.dvt_operators_in_use().decode()) if library else None


def use(instruction_set: str | None) -> None:
    """Let sessions opened from now on take that set, or the fastest; for tests and benchmarks."""
    library = _load()[0]
    name = instruction_set.encode() if instruction_set else None
    if library is None or not library.dvt_operators_use(name):
        raise ValueError(f"no instruction set {instruction_set}; {instruction_sets()} are there")


@lru_cache(maxsize=1)
def _load() -> tuple[ctypes.CDLL | None, Path | None, str | None]:
    where = find(LIBRARY)
    if where is None:
        return (
            None,
            None,
            (f"{LIBRARY} was not built; install a C++ compiler (g++) and then dvt-edge again"),
        )
    try:
        library = ctypes.CDLL(str(where))
        version = library.dvt_operators_version()
        library.dvt_operators_set.restype = ctypes.c_char_p
        library.dvt_operators_in_use.restype = ctypes.c_char_p
        library.dvt_operators_use.argtypes = [ctypes.c_char_p]
    except (OSError, AttributeError) as error:
        return None, None, f"{where} cannot be loaded: {error}; install dvt-edge again"
    if version != VERSION:
        return (
            None,
            None,
            (f"{where} has interface {version}, this code needs {VERSION}; install dvt-edge again"),
        )
    return library, where, None
