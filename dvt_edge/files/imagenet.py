"""Labels of ImageNet-1k, from the files that the package timm ships (it is not imported)."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

CLASSES = 1000
_SYNSETS = "imagenet_synsets.txt"
_LEMMAS = "imagenet_synset_to_lemma.txt"


@lru_cache
def synsets() -> tuple[str, ...] | None:
    """The 1,000 synsets, such as ``n01440764``, in class order; None where timm is missing."""
    folder = _folder()
    return tuple(_lines(folder / _SYNSETS)) if folder else None


@lru_cache
def labels() -> tuple[str, ...] | None:
    """Names such as ``tench, Tinca tinca`` in class order; None where timm is missing."""
    folder, order = _folder(), synsets()
    if folder is None or order is None:
        return None
    names = dict(line.split("\t", 1) for line in _lines(folder / _LEMMAS))
    return tuple(names.get(synset, synset) for synset in order)


def _folder() -> Path | None:
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "data" / "_info"
    return folder if (folder / _SYNSETS).exists() and (folder / _LEMMAS).exists() else None


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
