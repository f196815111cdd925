"""Write ``docs/reference.md``: every key of the profile and of the training file.

    python docs/generate_reference.py

The text is the docstrings of the models in ``dvt_edge/profile.py`` and
``dvt_edge/models/training_config.py``; a test compares it with the file.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dvt_edge.files.documents import Document
from dvt_edge.models.training_config import TrainingConfig
from dvt_edge.profile import Profile

REFERENCE = Path(__file__).with_name("reference.md")


def reference() -> str:
    """The whole reference as Markdown."""
    parts = [
        "# Every key of the YAML files\n",
        "Written by `docs/generate_reference.py` from the models' docstrings. Unknown keys are",
        "refused. Relative paths are relative to the folder of the file that they stand in; `~` is",
        "the home folder. A file has at most 256 KiB.\n",
        "## Profile (`--profile`)\n",
        *_rows(Profile, ""),
        "\n## Training (`dvt-edge train --config`)\n",
        *_rows(TrainingConfig, ""),
    ]
    return "\n".join(parts) + "\n"


def _rows(model: type[Document], prefix: str) -> Iterator[str]:
    if not prefix:
        yield "| key | type | default | meaning |\n| --- | --- | --- | --- |"
    for name, field in model.model_fields.items():
        inner = _inner_model(field.annotation)
        many = inner is not None and typing.get_origin(field.annotation) is tuple
        key = f"{prefix}{name}{'[]' if many else ''}"
        default = "required" if field.is_required() else _default(field.default)
        if inner is None:
            meaning = " ".join(inspect.cleandoc(field.description or "").split())
            meaning = meaning.replace("``", "`")
            yield f"| `{key}` | {_type(field.annotation)} | {default} | {meaning} |"
        else:
            yield from _rows(inner, f"{key}.")


def _inner_model(annotation: Any) -> type[Document] | None:
    if isinstance(annotation, type) and issubclass(annotation, Document):
        return annotation
    found = (_inner_model(a) for a in typing.get_args(annotation))
    return next((model for model in found if model is not None), None)


def _default(value: Any) -> str:
    if value is None:
        return ""
    shown = list(value) if isinstance(value, tuple) else value
    return f"`{str(shown).lower() if isinstance(shown, bool) else shown}`"


def _type(annotation: Any) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f"`{a}`" for a in args)
    if origin is typing.Annotated:
        return _type(args[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(a) for a in args if a is not type(None))
    if origin is tuple:
        return f"list of {_type(args[0])}"
    return {Path: "path"}.get(annotation, getattr(annotation, "__name__", str(annotation)))


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
