"""Files that a reader sees whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvt_edge.errors import ConfigError
from dvt_edge.files.replacing import check_writable, write_text


def test_write_text(tmp_path: Path) -> None:
    """The file is replaced as a whole and is readable by others."""
    path = tmp_path / "manifest.json"
    path.write_text("old", encoding="utf-8")
    write_text(path, "new ä")
    assert path.read_text(encoding="utf-8") == "new ä"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_write_text_after_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Until the new file is complete, a reader sees the old one; no litter is left."""
    path = tmp_path / "manifest.json"
    path.write_text("old", encoding="utf-8")

    def failing(source: str, target: Path) -> None:
        assert path.read_text(encoding="utf-8") == "old"
        assert Path(source).read_text(encoding="utf-8") == "new"
        raise error

    monkeypatch.setattr("os.replace", failing)
    with pytest.raises(error):
        write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_what_cannot_be_written_is_known_before(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "report.html")
    assert not any((tmp_path / "new").iterdir())
    (tmp_path / "file").write_text("")
    for path, words in ((tmp_path, "it is a folder"), (tmp_path / "file" / "x", "writable")):
        with pytest.raises(ConfigError, match=words):
            check_writable(path)
