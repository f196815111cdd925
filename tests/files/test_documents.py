"""YAML documents: what the messages name. Profiles have their own tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import pytest

from dvt_edge.errors import ConfigError
from dvt_edge.files.documents import MOST_BYTES, MOST_CHARACTERS, Document, DocumentPath


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
    assert len(message) < 2000
    return message


def _merged(keys: int, times: int) -> str:
    """A mapping of ``keys``, merged into ``times`` others."""
    shared = ", ".join(f"k{i}: 0" for i in range(keys))
    return f"pet: &pet {{{shared}}}\nfriends:\n" + "- {<<: *pet}\n" * times


def _merged_deep(levels: int, width: int) -> str:
    """Mappings of which each merges the one before ``width`` times."""
    lines = [
        f"x{k}: &x{k} {{<<: [{', '.join([f'*x{k - 1}'] * width)}]}}\n" for k in range(1, levels)
    ]
    return "".join(["x0: &x0 {a: 1}\n", *lines])


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
        ("door: !!timestamp soon\n", ["home.yaml: not valid YAML: a value does not fit its tag"]),
        ("heated: !!bool perhaps\n", ["home.yaml: not valid YAML: a value does not fit its tag"]),
        ("rooms: !!int ''\n", ["home.yaml: not valid YAML: "]),
        ("door: \x00\n", ["home.yaml: not valid YAML: unacceptable character"]),
        ("[" * 3000, ["home.yaml: not valid YAML: brackets within brackets, too deep"]),
        (_merged(200, 60), ["not valid YAML: merge keys (<<) add too many keys; write them out"]),
        ("".join(f"k{i}: 0\n" for i in range(15000)), ["home.yaml:1: k0: unknown key; ", "14992"]),
        (_merged_deep(9, 10), ["home.yaml:"]),  # at once; PyYAML before 6.0.4 took a minute
        (
            f"door: {'x' * (MOST_CHARACTERS + 1)}\n",
            ["home.yaml:1: not valid YAML: a value of 4097"],
        ),
        (
            f"? {'x' * (MOST_CHARACTERS + 1)}\n: 1\n",
            ["home.yaml:1: not valid YAML: a value of 4097"],
        ),
        (f"rooms: {'x' * 4000}\n", ["home.yaml:1: rooms: ", ", found 'xxx", "..."]),
        (f"{'x' * 1000}: 1\n", ["home.yaml:1: xxx", "...: unknown key"]),
        (f"door: !{'x' * 4000} 1\n", ["home.yaml:1: not valid YAML: ", "..."]),
        (f"{'x' * 1000}: 1\n{'x' * 1000}: 2\n", ["home.yaml:2: xxx", "...: given twice"]),
        (f"rooms: 0x{'f' * 4000}\n", ["home.yaml:1: rooms: ", "found a number of thousands of"]),
        ("rooms: " + "1" * 4301 + "\n", ["home.yaml:1: not valid YAML: a value of 4301"]),
        (f"rooms: [{'x, ' * 200}x]\n", ["home.yaml:1: rooms.0: ", "; and 193 more"]),
        (f"# {'x' * MOST_BYTES}\n", ["home.yaml: larger than the 256 KiB that a YAML file may"]),
        ('door: "a\\0b"\n', ["home.yaml:1: door: a path cannot hold a NUL character"]),
        ("door: ~nobody-of-this-name/x\n", ["home.yaml:1: door: nobody's home folder; write"]),
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


def test_a_few_merge_keys_are_fine(tmp_path: Path) -> None:
    """They are for what several mappings share."""
    text = "pet: &pet {kind: dog, whiskers: 8}\nfriends:\n- {<<: *pet, whiskers: 7}\n- *pet\n"
    home = Home.from_yaml(_write(tmp_path, text))
    assert home.friends == (Pet(kind="dog", whiskers=7), Pet(kind="dog", whiskers=8))


def test_many_aliases_of_lists_are_soon_refused(tmp_path: Path) -> None:
    """A billion values in a few lines: nothing spells them out."""
    lists = "".join(f"- &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 10))
    assert "rooms.0" in _error(tmp_path, f"rooms:\n- &a0 [1]\n{lists}")


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` is not the name of a folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert Home.from_yaml(_write(tmp_path, "door: ~/red\n")).door == tmp_path / "me" / "red"


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "/dev", "fifo"])
def test_only_regular_files(tmp_path: Path, name: str) -> None:
    """Devices never end, and a FIFO waits for its writer."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match=f"{name}: not a regular file; give the path of a YAML"):
        Home.from_yaml(tmp_path / name)


def test_nul_in_the_documents_own_path() -> None:
    """Nothing on a command line can hold one, a program can."""
    with pytest.raises(ConfigError, match=r"'a\\x00b': a path cannot hold a NUL character"):
        Home.from_yaml("a\0b")


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
    with pytest.raises(ConfigError, match="not a regular file"):
        Home.from_yaml(tmp_path)


def test_binary_file(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are refused by name."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ConfigError, match=r"model\.safetensors: cannot be read as text"):
        Home.from_yaml(path)
