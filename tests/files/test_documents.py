"""YAML documents: what the messages name. Profiles have their own tests."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from dvt_edge.errors import ConfigError
from dvt_edge.files.documents import Document, DocumentPath


class Pet(Document):
    """A document in a document."""

    kind: Literal["cat", "dog"]
    whiskers: int = 24
    commands: tuple[str, ...] = ()


class Home(Document):
    """A document with everything that can go wrong."""

    rooms: tuple[int, ...] = (1,)
    pet: Pet | None = None
    friends: tuple[Pet, ...] = ()
    heated: bool = True
    degrees: float = 20.0
    door: DocumentPath = Path("door")


def _write(folder: Path, text: str) -> Path:
    path = folder / "home.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _error(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Home.from_yaml(_write(folder, text))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_valid(tmp_path: Path) -> None:
    """Lists become tuples, mappings models, paths are beside the document."""
    home = Home.from_yaml(
        _write(tmp_path, "rooms: [2, 3]\npet: {kind: dog, commands: [sit]}\ndoor: ../red\n")
    )
    assert home.rooms == (2, 3)
    assert home.pet == Pet(kind="dog", commands=("sit",))
    assert home.door == tmp_path.parent / "red"


def test_absolute_path_stays(tmp_path: Path) -> None:
    """An absolute path is taken as it is."""
    door = tmp_path / "elsewhere" / "door"
    assert Home.from_yaml(_write(tmp_path, f"door: {door}\n")).door == door


def test_frozen() -> None:
    """A document does not change after it was validated."""
    with pytest.raises(ValueError, match="frozen"):
        Home().degrees = 3.0  # type: ignore[misc]


def test_scientific_notation(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-3 as text; it is still a number to us."""
    assert Home.from_yaml(_write(tmp_path, "degrees: 1e-3\n")).degrees == 1e-3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("degrees: 3\nromos: [1]\n", ["home.yaml:2: romos: unknown key; did you mean 'rooms'?"]),
        ("zzzzz: 1\n", ["home.yaml:1: zzzzz: unknown key; valid keys: degrees, door, friends"]),
        ("pet:\n  kind: cat\n  wiskers: 3\n", [":3: pet.wiskers: unknown", "'whiskers'?"]),
        ("friends:\n- kind: dog\n  xyz: 3\n", [":3: friends.0.xyz: unknown", "commands, kind"]),
        ("pet: {}\n", ["home.yaml:1: pet", "kind"]),
        ("pet: {kind: cow}\n", ["home.yaml:1: pet", "'cat' or 'dog'"]),
        ("rooms:\n- 1\n- two\n", ["home.yaml:3: rooms.1: ", "valid integer", "found 'two'"]),
        ("rooms:\n- 1\n- true\n", ["home.yaml:3: rooms.1: expected a number, found a boolean"]),
        ("degrees: yes\n", ["home.yaml:1: degrees: expected a number, found a boolean"]),
        ("pet:\n  kind: cat\n  whiskers: on\n", ["home.yaml:3: pet.whiskers: ", "a boolean"]),
        ("degrees: .nan\n", ["home.yaml:1: degrees: ", "finite", "found nan"]),
        ("degrees: -.inf\n", ["home.yaml:1: degrees: ", "finite", "found -inf"]),
        ("heated: 7\n", ["home.yaml:1: heated: ", "boolean", "found 7"]),
        ("3: 4\n", ["home.yaml:1: 3: ", "string"]),
        ("degrees: 1\nheated: no\ndegrees: 2\n", [":3: degrees: given twice, first in line 1"]),
        ("pet:\n  kind: cat\n  kind: dog\n", [":3: kind: given twice, first in line 2"]),
        ("rooms: &r [*r]\n", ["home.yaml:1: rooms"]),
        ("rooms: [1\n", ["home.yaml:2: not valid YAML: "]),
        ("rooms: 1\n---\nrooms: 2\n", ["home.yaml:2: not valid YAML: ", "another document"]),
        ("rooms:\n\t- 1\n", ["home.yaml:2: not valid YAML: "]),
        ("door: !!python/object:os.system {}\n", ["home.yaml:1: not valid YAML: "]),
        ("door: 2024-13-45\n", ["home.yaml: not valid YAML: month must be in 1..12"]),
        ("door: \x00\n", ["home.yaml: not valid YAML: unacceptable character"]),
        ("[" * 3000, ["home.yaml: not valid YAML: "]),
        ("", ["home.yaml: expected a mapping of keys, found an empty file"]),
        ("# only a comment\n", ["found an empty file"]),
        ("- 1\n", ["expected a mapping of keys, found a list"]),
        ("just text\n", ["expected a mapping of keys, found a str"]),
    ],
)
def test_bad_documents(tmp_path: Path, text: str, expected: list[str]) -> None:
    """Every message is one line with the file, the line, the key and what was expected."""
    message = _error(tmp_path, text)
    for part in expected:
        assert part in message


def test_booleans_where_they_belong(tmp_path: Path) -> None:
    """Only numbers and texts refuse booleans."""
    assert Home.from_yaml(_write(tmp_path, "heated: no\n")).heated is False


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    """A document with two mistakes is not sent back twice."""
    message = _error(tmp_path, "degres: 1\nrooms: x\n")
    assert "home.yaml:1: degres" in message
    assert "home.yaml:2: rooms" in message


def test_missing_file(tmp_path: Path) -> None:
    """A file that does not exist is named."""
    with pytest.raises(ConfigError, match=r"nothing\.yaml: no such file"):
        Home.from_yaml(tmp_path / "nothing.yaml")


def test_folder(tmp_path: Path) -> None:
    """A folder is not a document."""
    with pytest.raises(ConfigError, match="cannot be read as text"):
        Home.from_yaml(tmp_path)


def test_binary_file(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are refused by name."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ConfigError, match=r"model\.safetensors: cannot be read as text"):
        Home.from_yaml(path)
