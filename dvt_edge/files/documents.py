"""YAML documents as validated models: errors name the file, the line, the key and the remedy."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails
from typing_extensions import Self

from dvt_edge.errors import ConfigError


def _beside_document(path: Path, info: ValidationInfo) -> Path:
    return Path(os.path.normpath(info.context["folder"] / path)) if info.context else path


DocumentPath = Annotated[Path, AfterValidator(_beside_document)]
"""A path; a relative one is relative to the folder of the YAML file it is in."""


class Document(BaseModel):
    """Base of every configuration model: frozen, unknown keys refused, docstrings as reference."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read and validate one YAML file.

        Raises :class:`~dvt_edge.errors.ConfigError` naming file, line, key, what was expected and
        the nearest valid key.
        """
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(f"{file}: no such file; give the path of a YAML file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: cannot be read as text ({error})") from None
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            values = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2024-13-45
            mark = getattr(error, "problem_mark", None)
            where = f"{file}:{mark.line + 1}" if mark else str(file)
            problem = getattr(error, "problem", None) or " ".join(str(error).split())
            raise ConfigError(f"{where}: not valid YAML: {problem}") from None
        for key, first in _repeated_keys(root):
            raise ConfigError(
                f"{file}:{key.start_mark.line + 1}: {key.value}: given twice, first in line "
                f"{first.start_mark.line + 1}; keep one of them"
            )
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: expected a mapping of keys, found {_kind(values)}")
        try:
            document = cls.model_validate(values, context={"folder": file.parent})
        except ValidationError as error:
            lines = [_describe(file, root, cls, detail) for detail in error.errors()]
            raise ConfigError("; ".join(lines)) from None
        for keys in _booleans_as_numbers(values, document):
            line, _ = _locate(root, keys)
            raise ConfigError(
                f"{file}:{line}: {'.'.join(map(str, keys))}: expected a number, found a boolean "
                "(true, false, yes, no, on, off)"
            )
        return document


def _repeated_keys(root: yaml.Node | None) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    """Keys given again in one mapping, of which YAML would take the last, and the first."""
    waiting, known = [root], {id(root)}  # aliases make a graph of it, even one with circles
    while waiting:
        node = waiting.pop()
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            seen: dict[str, yaml.Node] = {}
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and seen.setdefault(key.value, key) is not key:
                    yield key, seen[key.value]
                children.append(value)
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        new = [child for child in children if id(child) not in known]
        known.update(id(child) for child in new)
        waiting += new


def _booleans_as_numbers(raw: object, valid: object) -> Iterator[list[int | str]]:
    """Where YAML's ``true`` and ``yes`` were taken for a 1: Python counts booleans as integers."""
    if isinstance(raw, bool) and not isinstance(valid, bool):
        yield []
    children: list[tuple[int | str, object, object]] = []
    if isinstance(raw, dict) and isinstance(valid, BaseModel):
        children = [(key, value, getattr(valid, key)) for key, value in raw.items()]
    elif isinstance(raw, list) and isinstance(valid, tuple):
        children = [(i, *pair) for i, pair in enumerate(zip(raw, valid, strict=False))]
    for part, inner_raw, inner_valid in children:
        for rest in _booleans_as_numbers(inner_raw, inner_valid):
            yield [part, *rest]


def _describe(file: Path, root: yaml.Node | None, model: type[Document], e: ErrorDetails) -> str:
    path = [
        part for part in e["loc"] if not (isinstance(part, str) and part.startswith("function"))
    ]
    line, known = _locate(root, path)
    dotted = ".".join(str(part) for part in known) or "the document"
    where = f"{file}:{line}: {dotted}"
    if e["type"] == "extra_forbidden":
        valid = _valid_keys(model, path[:-1])
        near = difflib.get_close_matches(str(path[-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"valid keys: {', '.join(valid)}"
        return f"{where}: unknown key; {hint}"
    if e["type"] == "missing":
        return f"{where}: the key '{path[-1]}' is missing; add it"
    message = e["msg"].removeprefix("Value error, ")
    found = e.get("input")
    shown = "" if isinstance(found, (dict, list, BaseModel)) else f", found {found!r}"
    return f"{where}: {message[0].lower()}{message[1:]}{shown}"


def _locate(root: yaml.Node | None, path: list[int | str]) -> tuple[int, list[int | str]]:
    """Line (from 1) of the deepest node on ``path`` and the part of the path that exists."""
    node, line, known = root, 1, []
    for part in path:
        found: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    found, line = value, key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            found = next(iter(node.value[part : part + 1]), None)
            line = found.start_mark.line + 1 if found else line
        if found is None:
            continue  # missing keys, and the types in a union, have no node
        known.append(part)
        node = found
    return line, known


def _valid_keys(model: type[Document], path: list[int | str]) -> list[str]:
    """Keys of the sub-model at ``path``, found by following the annotations."""
    found: Any = model
    for part in path:
        if isinstance(part, str):
            found = _model_in(found.model_fields[part].annotation)
    return sorted(found.model_fields)


def _model_in(annotation: Any) -> Any:
    """The model in ``annotation``, such as ``tuple[Model, ...]`` or ``Model | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, getattr(annotation, "__args__", ()))), None)


def _kind(value: object) -> str:
    return "an empty file" if value is None else f"a {type(value).__name__}"
