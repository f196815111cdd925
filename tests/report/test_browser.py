"""The page in headless Chromium: what it draws, what the slider moves, and what it looks like."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dvt_edge.report import ReportData, write_report
from dvt_edge.report.data import Point

DARK_PAGE, LIGHT_PAGE = "rgb(17, 20, 24)", "rgb(245, 244, 241)"
CHARTS = ("tradeoff", "shares", "calls", "stages", "classes")


class Page:
    """A report in the browser."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def run(self, script: str) -> Any:
        return self.browser.execute_script(f"return {script}")

    def wait(self, condition: str) -> None:
        """Until ``condition``, an expression of JavaScript, holds; fails after 30 s."""
        until = time.monotonic() + 30
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < until, f"never happened: {condition}"
            time.sleep(0.02)

    def settle(self) -> None:
        """Until the frames that were asked for are drawn."""
        self.browser.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
        )

    def text(self, name: str) -> str:
        return str(self.run(f"document.getElementById('{name}').textContent"))

    def slide(self, value: float) -> None:
        self.browser.execute_script(
            "const slider = document.getElementById('budget'); slider.value = arguments[0];"
            "slider.dispatchEvent(new Event('input'))",
            value,
        )
        self.settle()

    def click(self, selector: str) -> None:
        self.browser.find_element("css selector", selector).click()
        self.settle()

    def trace(self, chart: str, name: str) -> Any:
        """x and y of one trace as it is drawn."""
        return self.run(
            f"(() => {{ const t = document.getElementById('{chart}').data.find((t) => t.name === "
            f"{json.dumps(name)}); return [Array.from(t.x), Array.from(t.y)] }})()"
        )

    def figures(self) -> tuple[str, str, list[str], list[str]]:
        """Accuracy, latency, thresholds and shares as displayed."""
        each = "[...document.querySelectorAll('[data-{}]')].map((cell) => cell.textContent)"
        return (
            self.text("accuracy"),
            self.text("latency"),
            self.run(each.format("threshold")),
            self.run(each.format("share")),
        )


def _displayed(point: Point) -> tuple[str, str, list[str], list[str]]:
    """What the page must show for ``point``."""
    thresholds = [
        "none leave" if t is None else "all leave" if t == 0 else f"{t:.4f}"
        for t in point.thresholds[:-1]
    ]
    return (
        f"{100 * point.accuracy:.2f} %",
        f"{point.latency_ms:.3f} ms",
        [*thresholds, "all that are left"],
        [f"{100 * share:.1f} %" for share in point.exit_fraction],
    )


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, plain_data: ReportData, full_data: ReportData
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    paths = {kind: folder / f"{kind}.html" for kind in ("plain", "full")}
    write_report(paths["plain"], plain_data)
    write_report(paths["full"], full_data)
    return paths


@pytest.fixture
def show(chromium: Any, files: dict[str, Path]) -> Iterator[Callable[..., Page]]:
    """A function that opens ``plain`` or ``full`` at a width, light or dark; whatever the test
    did, the console must be empty and nothing may have been loaded but the file."""

    def open_page(kind: str = "full", width: int = 1280, scheme: str = "light") -> Page:
        chromium.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        _emulate(chromium, scheme)
        chromium.get(files[kind].as_uri())
        page = Page(chromium)
        page.wait("document.documentElement.dataset.charts === 'drawn'")
        page.settle()
        return page

    for log in ("browser", "performance"):
        chromium.get_log(log)
    yield open_page
    assert chromium.get_log("browser") == []
    assert _loaded(chromium) == {"file"}


def _emulate(browser: Any, scheme: str) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )


def _loaded(browser: Any) -> set[str]:
    """Schemes of all that was requested, ``data`` and ``blob`` aside."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"].endswith("WillBeSent")]
    return {url.split(":")[0] for url in urls} - {"data", "blob"}


@pytest.mark.parametrize("kind", ["plain", "full"])
def test_charts_are_drawn(show: Callable[..., Page], kind: str) -> None:
    """Five charts, as marks on the screen."""
    page = show(kind)
    for chart in CHARTS:
        marks = page.run(
            f"[...document.querySelectorAll('#{chart} .trace path, #{chart} .point path')]"
            ".filter((mark) => mark.getBoundingClientRect().width > 0).length"
        )
        assert marks >= 3, chart


def test_all_solutions_are_drawn(show: Callable[..., Page], full_data: ReportData) -> None:
    """Ours, the authors', every exit alone, and all stages for all frames."""
    page = show()
    for name, points in (
        ("best thresholds", full_data.frontiers["latency"]),
        ("the authors' rule", full_data.authors),
        ("all frames at one exit", full_data.single_exits[:-1]),
        ("static: all frames through all stages", full_data.single_exits[-1:]),
    ):
        x, y = page.trace("tradeoff", name)
        assert x == pytest.approx([p.latency_ms for p in points]), name
        assert y == pytest.approx([100 * p.accuracy for p in points]), name


def test_starts_at_the_profile_s_budget(show: Callable[..., Page], full_data: ReportData) -> None:
    """The certified point, which is not on the curve."""
    point = full_data.operating.point
    assert point is not None
    page = show()
    assert page.figures() == _displayed(point)
    assert page.text("budget-value") == "1.800 ms"
    assert page.trace("tradeoff", "this budget")[0] == [pytest.approx(point.latency_ms)]
    assert page.run("document.getElementById('reset').disabled")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_slider_moves_everything(
    show: Callable[..., Page], full_data: ReportData, share: float
) -> None:
    """Figures, marker and classes are those of the best solution within the budget."""
    curve = full_data.frontiers["latency"]
    least, most = curve[0].latency_ms, curve[-1].latency_ms
    budget = most if share == 1 else least + share * (most - least)
    expected = [point for point in curve if point.latency_ms <= budget][-1]
    page = show()
    page.slide(budget)
    assert page.figures() == _displayed(expected)
    assert page.text("energy").startswith(f"{expected.energy_mj:.4g}"[:4])
    assert page.text("budget-value") == f"{budget:.3f} ms"
    x, y = page.trace("tradeoff", "this budget")
    assert (x, y) == (
        [pytest.approx(expected.latency_ms)],
        [pytest.approx(100 * expected.accuracy)],
    )
    for k in range(full_data.exits):
        shares, _ = page.trace("classes", f"exit {k + 1}")
        assert shares == pytest.approx(
            [
                100 * counts[k] / row.images
                for counts, row in zip(expected.class_exits, full_data.classes, strict=True)
            ]
        )
    page.click("#reset")
    point = full_data.operating.point
    assert point is not None
    assert page.figures() == _displayed(point)


def test_slider_by_keyboard(show: Callable[..., Page]) -> None:
    """A key moves it, and a screen reader hears what it gives."""
    page = show("plain")
    before = page.figures()
    slider = page.browser.find_element("id", "budget")
    for _ in range(10):
        slider.send_keys("\ue012")  # left
    page.settle()
    assert page.figures() != before
    assert page.figures()[0] in slider.get_attribute("aria-valuetext")


def test_click_on_a_solution(show: Callable[..., Page], plain_data: ReportData) -> None:
    """A point of the curve becomes the budget."""
    page = show("plain")
    chosen = len(plain_data.frontiers["latency"]) // 2
    page.run(
        "document.getElementById('tradeoff').emit('plotly_click', {points: [{x: "
        f"{plain_data.frontiers['latency'][chosen].latency_ms!r}}}]}})"
    )
    page.settle()
    assert page.figures() == _displayed(plain_data.frontiers["latency"][chosen])


def test_budget_in_energy(show: Callable[..., Page], full_data: ReportData) -> None:
    """The same page by millijoules, where they are known."""
    page = show()
    page.click("button[data-axis=energy]")
    assert page.text("tradeoff-title") == "Accuracy against mean energy"
    x, _ = page.trace("tradeoff", "best thresholds")
    assert x == pytest.approx([p.energy_mj for p in full_data.frontiers["energy"]])
    expected = full_data.frontiers["energy"][3]
    assert expected.energy_mj is not None
    page.slide(expected.energy_mj)
    assert page.figures() == _displayed(expected)
    assert page.text("budget-value").endswith(" mJ")


def test_no_energy_no_switch(show: Callable[..., Page]) -> None:
    page = show("plain")
    assert page.run("document.querySelectorAll('[data-axis], [data-pace]').length") == 0
    assert page.text("energy").startswith("unavailable")


def test_the_slowest_runs_are_not_drawn_as_many(show: Callable[..., Page]) -> None:
    """A last bin ten times as wide as the others is left out; ordinary ones are drawn."""
    page = show("plain")
    x, y = page.trace("calls", "exit 1")
    assert max(x) < 0.5  # of 0.3 ms; the bin reaches to 3 ms
    assert sum(y) == pytest.approx(100)
    x, y = page.trace("calls", "exit 2")
    assert len(x) == len(y) == 22
    assert sum(y) == pytest.approx(100)


def test_percentiles_for_want_of_histograms(
    show: Callable[..., Page], files: dict[str, Path], plain_data: ReportData
) -> None:
    """A measurement need not keep histograms of everything."""
    timing = plain_data.measurement.back_to_back
    last = timing.exits[-1]
    bare = [stage.model_copy(update={"edges_ms": (), "counts": ()}) for stage in last.stages]
    exits = (*timing.exits[:-1], last.model_copy(update={"stages": tuple(bare)}))
    measured = plain_data.measurement.model_copy(
        update={"back_to_back": timing.model_copy(update={"exits": exits})}
    )
    files["bare"] = files["plain"].with_name("bare.html")
    write_report(files["bare"], plain_data.model_copy(update={"measurement": measured}))
    page = show("bare")
    for k, stage in enumerate(bare):
        x, y = page.trace("stages", f"stage {k + 1}")
        assert x == pytest.approx([stage.p50_ms, stage.p95_ms, stage.p99_ms])
        assert set(y) == {f"stage {k + 1}"}


def test_pace_and_folder(show: Callable[..., Page]) -> None:
    """The histograms' pace and the classes' images can be chosen."""
    page = show()
    page.click("button[data-pace=paced]")
    assert page.run(
        "[...document.querySelectorAll('[data-table]')].map((table) => table.hidden)"
    ) == [True, False]
    page.click("button[data-source=data]")
    shares, _ = page.trace("classes", "exit 1")
    assert sorted(shares)[-2:] == pytest.approx([10, 50])  # bag and coat; the others are not there
    assert "in …/field/images per exit" in page.text("classes-of")


@pytest.mark.parametrize(("scheme", "color"), [("light", LIGHT_PAGE), ("dark", DARK_PAGE)])
def test_light_and_dark(show: Callable[..., Page], scheme: str, color: str) -> None:
    """The page and the charts follow the system, also while it is open."""
    page = show(scheme=scheme)
    ink = "getComputedStyle(document.querySelector('#tradeoff .xtick text')).fill"
    soft = "getComputedStyle(document.querySelector('header .soft')).color"
    assert page.run("getComputedStyle(document.body).backgroundColor") == color
    assert page.run(ink) == page.run(soft)
    before = page.run(ink)
    _emulate(page.browser, "light" if scheme == "dark" else "dark")
    page.wait(f"{ink} !== {json.dumps(before)}")
    assert page.run(ink) == page.run(soft)


def test_paper(show: Callable[..., Page]) -> None:
    """In print the page is light, without what can only be clicked, and charts fit their place."""
    page = show(scheme="dark")
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": dark})
    try:
        page.wait("document.querySelector('#tradeoff .main-svg').clientWidth === 640")
        assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        soft = "getComputedStyle(document.querySelector('header .soft')).color"
        assert page.run(soft) == "rgb(90, 96, 104)"
        assert not page.run("document.getElementById('budget').checkVisibility()")
        for chart in CHARTS:
            assert page.run(f"document.querySelector('#{chart} .main-svg').clientWidth") == 640
            drawn, place = (
                page.run(f"document.querySelector('{what}').clientHeight")
                for what in (f"#{chart} .main-svg", f"#{chart}")
            )
            assert drawn == place, chart
    finally:
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.parametrize("width", [320, 390, 768])
@pytest.mark.parametrize("kind", ["plain", "full"])
def test_no_sideways_scrolling(show: Callable[..., Page], kind: str, width: int) -> None:
    """All of the page is as wide as a phone, the charts too."""
    page = show(kind, width)
    assert page.run("document.documentElement.scrollWidth") <= width
    wide = page.run(
        "[...document.querySelectorAll('main *')].filter((e) => !e.closest('.wide') && "
        "e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.id || e.className)"
    )
    assert wide == []


def test_readable_in_both_schemes(show: Callable[..., Page]) -> None:
    """Text has a contrast of at least 4.5 to what it stands on (WCAG AA)."""
    script = """(() => {
      const light = (text) => {
        const [r, g, b] = text.match(/[0-9.]+/g).map((v) => v / 255)
          .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const ground = (e) => {
        const color = getComputedStyle(e).backgroundColor;
        return color !== "rgba(0, 0, 0, 0)" ? color : ground(e.parentElement);
      };
      return [...document.querySelectorAll("p, h1, h2, h3, dt, dd, td, th, li, output, .wrong")]
        .filter((e) => e.textContent.trim() && e.offsetParent)
        .map((e) => {
          const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
          return [(a + 0.05) / (b + 0.05), e.textContent.trim().slice(0, 30)];
        }).filter(([contrast]) => contrast < 4.5);
    })()"""
    for scheme in ("light", "dark"):
        assert show(scheme=scheme).run(script) == [], scheme


def test_an_old_browser_has_the_figures(
    show: Callable[..., Page], chromium: Any, files: dict[str, Path], plain_data: ReportData
) -> None:
    """Where charts cannot be unpacked, the slider still works and the page says what it lacks."""
    show("plain")
    hook = chromium.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": "delete self.DecompressionStream"}
    )
    try:
        chromium.get(files["plain"].as_uri())
        page = Page(chromium)
        assert not page.run("document.getElementById('no-charts').hidden")
        curve = plain_data.frontiers["latency"]
        page.slide(curve[0].latency_ms)
        assert page.figures() == _displayed(curve[0])
    finally:
        chromium.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", hook)
