"""The page's text, without a browser."""

from __future__ import annotations

import base64
import gzip
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dvt_edge.errors import ConfigError
from dvt_edge.report import ReportData, render, write_report
from tests.report.conftest import NO_SENSOR

_VOID = {"meta", "link", "img", "input", "br"}
_LOADS = {"src", "href", "srcset", "data", "action", "poster", "background"}


class _Page(HTMLParser):
    """Elements, what they load, and the text that people see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.refers: list[str] = []
        self.scripts: dict[str, str] = {}
        self.images_without_alt = 0
        self.words: list[str] = []
        self._script = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.loads += [value for name, value in values.items() if name in _LOADS]
        self.ids += [values["id"]] if "id" in values else []
        self.refers += [values[n] for n in ("for", "aria-labelledby") if n in values]
        self.images_without_alt += tag == "img" and not values.get("alt")
        self._script = values.get("id", "script")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def seen(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def full(full_data: ReportData) -> _Page:
    return _Page(render(full_data))


@pytest.fixture(scope="module")
def plain(plain_data: ReportData) -> _Page:
    return _Page(render(plain_data))


@pytest.mark.parametrize("kind", ["plain", "full"])
def test_structure(kind: str, request: pytest.FixtureRequest) -> None:
    """Every element is closed, ids are unique, labels refer to something, images have texts."""
    page: _Page = request.getfixturevalue(kind)
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    assert set(page.refers) <= set(page.ids)
    assert page.images_without_alt == 0


@pytest.mark.parametrize("kind", ["plain", "full"])
def test_loads_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    """Nothing is referred to but what is in the file."""
    text = render(request.getfixturevalue(f"{kind}_data"))
    page: _Page = request.getfixturevalue(kind)
    assert page.loads
    assert [t[:40] for t in page.loads if not t.startswith(("data:", "#"))] == []
    assert {t[1:] for t in page.loads if t.startswith("#")} <= set(page.ids)
    own = text.replace(page.scripts["plotly"], "")
    assert re.findall(r"url\(|@import|https?://|import\(|fetch\(|XMLHttp", own) == []
    assert "default-src 'none'" in own


def test_carries_plotly(full: _Page) -> None:
    """The library unpacks to what the Python package ships."""
    from plotly.offline import get_plotlyjs

    assert gzip.decompress(base64.b64decode(full.scripts["plotly"])).decode() == get_plotlyjs()


def test_small_enough_for_a_phone(full_data: ReportData) -> None:
    assert len(render(full_data).encode()) < 3_000_000


def test_same_data_same_page(full_data: ReportData) -> None:
    assert render(full_data) == render(full_data)


def test_full_text(full: _Page) -> None:
    """What the measurement holds is on the page, script or not."""
    for words in (
        "any CPU",
        "measured 2026-01-02, 03:04 UTC on a machine",
        "Before you trust these figures",
        "tj-thermal is at 88 degC; cool the machine",
        "2.000 ± 0.100",
        "8.000 ± 0.500",
        "Measured at INA3221 VDD_IN for 30 s. The idle machine draws 3.10 W.",
        "30 frames per second, 3 missed",
        "On …/field/images",
        "500 images in /data/of/the/field/images, at the profile's budget: 81.25 % right",
        "With a probability of 90 %, frames like the calibration images take at most",
        "n = 100 records",
        "δ = 0.1",
        "learn-then-test",
        "governor schedutil → powersave",
        "tj-thermal 88.0 °C",
        "Easiest",
    ):
        assert words in full.seen, words


def test_plain_text(plain: _Page, plain_data: ReportData) -> None:
    """What is missing is missing with its reason."""
    point = plain_data.operating.point
    assert point is not None
    for words in (
        "Energy unavailable: why",
        f"Unavailable: {NO_SENSOR}",
        "None: the budget has no confidence_level",
        f"{100 * point.accuracy:.2f} %",
        f"{point.latency_ms:.3f} ms",
        "no separate static network was measured",
        "CPU clock 1,500 → 1,400 MHz",
    ):
        assert words in plain.seen, words
    assert "Before you trust" not in plain.seen
    assert "frames per second" not in plain.seen


def test_declared_energy_is_called_declared(full_data: ReportData) -> None:
    measured = full_data.measurement
    energy = measured.energy.model_copy(update={"declared": True, "source": "declared"})
    declared = measured.model_copy(update={"energy": energy})
    seen = _Page(render(full_data.model_copy(update={"measurement": declared}))).seen
    assert "Declared in the profile, not measured." in seen
    assert "Mean energy, declared" in seen


def test_unsettled(plain_data: ReportData) -> None:
    measured = plain_data.measurement.model_copy(update={"settled": False})
    seen = _Page(render(plain_data.model_copy(update={"measurement": measured}))).seen
    assert "had not settled after 60 warm-up runs" in seen


def test_without_labels(plain_data: ReportData) -> None:
    """Agreement is not called accuracy, and classes are those of the last exit."""
    seen = _Page(render(plain_data.model_copy(update={"labelled": False}))).seen
    assert "Agreement with the last exit against mean latency" in seen
    assert "an image counts as the class that the last exit gives it" in seen


def test_without_images(plain_data: ReportData) -> None:
    changes = {"gallery": (), "gallery_unavailable": "no such folder"}
    assert (
        "No images are shown: no such folder"
        in _Page(render(plain_data.model_copy(update=changes))).seen
    )


def test_budget_not_kept(plain_data: ReportData) -> None:
    operating = plain_data.operating.model_copy(
        update={"point": None, "unavailable": "smaller than the first exit's"}
    )
    seen = _Page(render(plain_data.model_copy(update={"operating": operating}))).seen
    assert "cannot be kept here: smaller than the first exit's" in seen
    assert "None: smaller than the first exit's" in seen


def test_names_are_text(plain_data: ReportData) -> None:
    """Names from files and folders stay text, in the page and in its data."""
    name = "</script><script>alert(1)</script><b>&"
    rows = (plain_data.classes[0].model_copy(update={"name": name}), *plain_data.classes[1:])
    shown = (plain_data.gallery[0].model_copy(update={"name": name}), *plain_data.gallery[1:])
    text = render(plain_data.model_copy(update={"title": name, "classes": rows, "gallery": shown}))
    page = _Page(text)
    assert "<script>alert" not in text
    assert set(page.scripts) == {"data", "plotly", "script"}
    assert json.loads(page.scripts["data"])["classes"][0]["name"] == name
    assert name in page.seen


def test_data_of_shown_classes_only(full_data: ReportData) -> None:
    """A thousand classes are measured, a few are shown: only their shares travel."""
    kept = full_data.model_copy(update={"classes": full_data.classes[:1]})
    name = kept.classes[0].name
    told = full_data.measurement.data
    assert told is not None
    shares = {name: (1.0, 0.0, 0.0), "another": (0.0, 0.0, 1.0)}
    figures = told.model_copy(update={"class_exit_fraction": shares})
    measured = full_data.measurement.model_copy(update={"data": figures})
    page = _Page(render(kept.model_copy(update={"measurement": measured})))
    values = json.loads(page.scripts["data"])
    assert values["measurement"]["data"]["class_exit_fraction"] == {name: [1.0, 0.0, 0.0]}


def test_write(tmp_path: Path, plain_data: ReportData) -> None:
    """A new file, in a new folder if need be; nothing else is left there."""
    path = tmp_path / "new" / "report.html"
    write_report(path, plain_data)
    assert path.read_text(encoding="utf-8") == render(plain_data)
    assert list(path.parent.iterdir()) == [path]


def test_write_refused(tmp_path: Path, plain_data: ReportData) -> None:
    """A path that cannot be written is an error of ours that says what to do."""
    with pytest.raises(ConfigError, match=r"it is a folder\); give a file's path"):
        write_report(tmp_path, plain_data)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written .*; choose another file"):
        write_report(tmp_path / "file" / "report.html", plain_data)


@pytest.mark.parametrize(("module", "name"), [("jinja2", "Jinja2"), ("plotly", "Plotly")])
def test_without_the_extra(
    monkeypatch: pytest.MonkeyPatch, plain_data: ReportData, module: str, name: str
) -> None:
    """The error names what is missing and the extra that brings it."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"{name}; install with pip install 'dvt-edge\[rep"):
        render(plain_data)
