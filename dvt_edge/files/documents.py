"""YAML documents as validated models: errors name the file, the line, the key and the remedy."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails
from typing_extensions import Self
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from dvt_edge.errors import ConfigError
from dvt_edge.files.one_line import one_line

MOST_BYTES = 256 * 1024
"""Of a YAML file; PyYAML takes seconds for it."""
MOST_CHARACTERS = 4096
"""Of a single value in it."""
MOST_MERGED = 10_000
"""Keys that merge keys (``<<``) may add: few bytes can stand for 10**8."""
_SHOWN_CHARACTERS = 80
_SHOWN_PROBLEMS = 8


def _beside_document(path: Path, info: ValidationInfo) -> Path:
    if "\0" in str(path):
        raise ValueError("a path cannot hold a NUL character")
    if not info.context:
        return path
    try:
        path = path.expanduser()
    except RuntimeError:
        raise ValueError("nobody's home folder; write the path out") from None
    return Path(os.path.normpath(info.context["folder"] / path))


DocumentPath = Annotated[Path, AfterValidator(_beside_document)]
"""A path; ``~`` is the home folder, a relative one is relative to the folder of the YAML file it is
in."""


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
        root, values = _parsed(file, _read(file))
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: expected a mapping of keys, found {_kind(values)}")
        try:
            document = cls.model_validate(values, context={"folder": file.parent})
        except ValidationError as error:
            problems = error.errors()
            lines = [_describe(file, root, cls, problem) for problem in problems[:_SHOWN_PROBLEMS]]
            if len(problems) > _SHOWN_PROBLEMS:
                lines.append(f"and {len(problems) - _SHOWN_PROBLEMS} more")
            raise ConfigError("; ".join(lines)) from None
        for keys in _booleans_as_numbers(values, document):
            line, _ = _locate(root, keys)
            raise ConfigError(
                f"{file}:{line}: {'.'.join(map(str, keys))}: expected a number, found a boolean "
                "(true, false, yes, no, on, off)"
            )
        return document


class _Loader(yaml.SafeLoader):
    """Refuses what is short to write and long to read."""

    merged = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put the keys of merge keys into ``node``."""
        own = len(node.value)
        super().flatten_mapping(node)
        self.merged += max(0, len(node.value) - own)
        if self.merged > MOST_MERGED:
            raise ConstructorError(
                None, None, "merge keys (<<) add too many keys; write them out", node.start_mark
            )

    def compose_scalar_node(self, anchor: dict[Any, yaml.Node]) -> yaml.ScalarNode:
        """One value."""
        node = super().compose_scalar_node(anchor)
        if len(node.value) > MOST_CHARACTERS:
            raise ComposerError(
                None,
                None,
                f"a value of {len(node.value)} characters; the most is {MOST_CHARACTERS}",
                node.start_mark,
            )
        return node


def _read(file: Path) -> str:
    """The text of a YAML file; raises ConfigError for anything but a regular file of its size."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # opening a FIFO would wait for its writer
            raise ConfigError(f"{file}: not a regular file; give the path of a YAML file")
        with file.open("rb") as opened:
            data = opened.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ConfigError(
                f"{file}: larger than the {MOST_BYTES // 1024} KiB that a YAML file may have; give "
                "the path of a profile or a training file"
            )
        return data.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file; give the path of a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); make it readable") from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"{file}: cannot be read as text; give the path of a YAML file in UTF-8"
        ) from None
    except ValueError:  # a NUL, as nothing on a command line can hold
        raise ConfigError(f"{str(file)!r}: a path cannot hold a NUL character") from None


def _parsed(file: Path, text: str) -> tuple[yaml.Node | None, object]:
    """The nodes of ``text``, which know their lines, and what they stand for."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        for key, first in _repeated_keys(root):
            raise ConfigError(
                f"{file}:{key.start_mark.line + 1}: {_short(key.value)}: given twice, first in "
                f"line {first.start_mark.line + 1}; keep one of them"
            )
        return root, None if root is None else loader.construct_document(root)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2024-13-45
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        if isinstance(error, RecursionError):
            problem = "brackets within brackets, too deep"
        raise ConfigError(f"{where}: not valid YAML: {_short(problem, 200)}") from None
    except (AttributeError, LookupError, TypeError, ArithmeticError):  # PyYAML's: !!bool perhaps
        raise ConfigError(
            f"{file}: not valid YAML: a value does not fit its tag (!!); leave the tag out"
        ) from None


def first_problem(error: ValidationError | UnicodeDecodeError) -> str:
    """What is wrong first with a JSON document, in one line, without addresses."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not text in UTF-8"
    first = error.errors(include_url=False)[0]
    key = ".".join(_short(str(part)) for part in first["loc"])
    message = _short(" ".join(first["msg"].removeprefix("Value error, ").split()), 400)
    return f"{key}: {message}" if key else message


def _short(text: str, most: int = _SHOWN_CHARACTERS) -> str:
    """The beginning of ``text``, which may be of any length, in one line."""
    return one_line(text if len(text) <= most else f"{text[:most]}...")


def _shown(value: object) -> str:
    """``value`` for a message."""
    try:
        return _short(repr(value))
    except ValueError:  # Python prints integers of up to 4300 digits
        return "a number of thousands of digits"


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
    dotted = ".".join(_short(str(part)) for part in known) or "the document"
    where = f"{file}:{line}: {dotted}"
    if e["type"] == "extra_forbidden":
        valid = _valid_keys(model, path[:-1])
        near = difflib.get_close_matches(str(path[-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"valid keys: {', '.join(valid)}"
        return f"{where}: unknown key; {hint}"
    if e["type"] == "missing":
        return f"{where}: the key '{path[-1]}' is missing; add it"
    message = _short(e["msg"].removeprefix("Value error, "), 400)
    found = e.get("input")
    shown = "" if isinstance(found, (dict, list, BaseModel)) else f", found {_shown(found)}"
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
