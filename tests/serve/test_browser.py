"""The page in headless Chromium: what moves, what it says, and what it looks like."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from dvt_edge import Runtime
from dvt_edge.app.sinks import Note
from dvt_edge.serve import LivePage
from tests.serve.conftest import TOKEN, Camera, Watcher

pytestmark = pytest.mark.slow

PIXELS = "document.getElementById('picture').toDataURL()"


class Page:
    """The live page in the browser."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def run(self, script: str) -> Any:
        return self.browser.execute_script(f"return {script}")

    def wait(self, condition: str) -> None:
        """Until ``condition``, an expression of JavaScript, holds; fails after 20 s."""
        until = time.monotonic() + 20
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < until, f"never happened: {condition}"
            time.sleep(0.05)

    def text(self, name: str) -> str:
        return str(self.run(f"document.getElementById({json.dumps(name)}).textContent"))

    def wait_for_text(self, name: str, part: str) -> None:
        what = f"document.getElementById({json.dumps(name)}).textContent"
        self.wait(f"{what}.includes({json.dumps(part)})")

    def column(self, name: str) -> list[str]:
        """Shares of the exits, as displayed."""
        return [self.text(f"{name}-exit-{k}") for k in range(3)]

    def slide(self, to: str, *, let_go: bool) -> None:
        """``to`` is an expression of ``s``, the slider."""
        self.browser.execute_script(
            f"const s = document.getElementById('budget'); s.value = {to};"
            "s.dispatchEvent(new Event('input'));"
            + ("s.dispatchEvent(new Event('change'))" if let_go else "")
        )


@pytest.fixture
def show(chromium: Any) -> Iterator[Callable[..., Page]]:
    """A function that opens a page at a width, light or dark; whatever the test did, the console
    must be empty and nothing may have been asked of another server."""
    served: set[str] = set()

    def open_page(page: LivePage, width: int = 1280, scheme: str = "light") -> Page:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        served.add(f"127.0.0.1:{page.port}")
        chromium.get(page.url)
        opened = Page(chromium)
        opened.wait("document.querySelector('#link')")
        return opened

    for log in ("browser", "performance"):
        chromium.get_log(log)
    yield open_page
    assert chromium.get_log("browser") == []
    asked = [urlsplit(url) for url in _asked(chromium)]
    assert {url.netloc for url in asked if url.scheme in ("http", "https", "ws", "wss")} <= served
    chromium.get("about:blank")


def _asked(browser: Any) -> set[str]:
    """Addresses of all requests and sockets; ``data`` and ``blob`` would be among them."""
    found = set()
    for entry in browser.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        if event["method"] == "Network.requestWillBeSent":
            found.add(event["params"]["request"]["url"])
        elif event["method"] == "Network.webSocketCreated":
            found.add(event["params"]["url"])
    return found


def test_the_picture_moves(
    serve: Callable[..., LivePage], runtime: Runtime, show: Callable[..., Page]
) -> None:
    """With the answer, and stops with the camera, which the page says."""
    served = serve()
    with Camera(served, runtime):
        page = show(served)
        page.wait_for_text("link", "live")
        page.wait("!document.querySelector('#screen').hasAttribute('data-stopped')")
        seen: set[str] = set()
        until = time.monotonic() + 20
        while len(seen) < 5:
            seen.add(page.run(PIXELS))
            assert time.monotonic() < until
        assert page.text("exit").endswith("of 3")
        assert page.text("age").endswith("ms")
        assert page.text("energy") == "not measured"
        served.event(Note("camera_lost", "<b>the cable</b>", "gate"))
        page.wait_for_text("events", "gate: <b>the cable</b>")
        page.wait("document.querySelectorAll('.chart canvas').length === 3")
        page.wait_for_text("latency-said", "last minute")
    page.wait_for_text("stopped", "No new picture for")
    assert page.run("document.querySelector('#stopped').checkVisibility()")
    assert page.run("document.querySelector('#picture').ariaLabel") == "The picture has stopped"
    page.wait("document.querySelector('#age').textContent.endsWith(' s')")
    assert page.text("link") == "live"


def test_the_slider(
    serve: Callable[..., LivePage], runtime: Runtime, show: Callable[..., Page]
) -> None:
    """While it moves it says what comes; let go, that comes, and the measured exits follow."""
    served = serve()
    with Camera(served, runtime):
        page = show(served)
        page.wait("!document.querySelector('#budget').disabled")
        assert page.text("budget-value") == "2 ms"
        page.wait_for_text("measured-exit-0", "%")
        before = page.column("now")
        assert before == [f"{100 * share:.1f} %" for share in runtime.solution.exit_fraction]
        page.slide("0", let_go=False)
        assert page.text("budget-value") == "1 ms"
        assert page.column("then") == ["100.0 %", "0.0 %", "0.0 %"]
        assert page.column("now") == before
        assert "Let go to put it in force" in page.text("forecast")
        assert runtime.budget.latency_ms == 2.0
        page.slide("0", let_go=True)
        page.wait_for_text("budget-now", "In force: mean latency 1 ms")
        assert runtime.budget.latency_ms == 1.0
        assert page.column("now") == page.column("then") == ["100.0 %", "0.0 %", "0.0 %"]
        page.wait("document.querySelector('#measured-exit-0').textContent === '100.0 %'")
        page.wait("document.querySelector('#forecast').textContent.startsWith('Move the slider')")
        page.run("document.querySelector('#reset').click()")
        page.wait_for_text("budget-now", "In force: mean latency 2 ms")
        assert page.column("now") == before


def test_the_slider_by_keyboard(
    serve: Callable[..., LivePage], runtime: Runtime, show: Callable[..., Page]
) -> None:
    """A key moves it, and a screen reader hears what it gives and what is in force."""
    served = serve()
    with Camera(served, runtime):
        page = show(served)
        page.wait("!document.querySelector('#budget').disabled")
        page.browser.find_element("id", "budget").send_keys("\ue010")  # End
        page.wait_for_text("said", "Budget in force: mean latency")
        page.wait("document.querySelector('#budget').getAttribute('aria-valuetext').includes('ms')")
        assert runtime.budget.latency_ms is not None
        assert runtime.budget.latency_ms > 2.0


def test_a_budget_that_is_refused(
    serve: Callable[..., LivePage],
    runtime: Runtime,
    show: Callable[..., Page],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Says why, and the slider goes back."""
    page = show(serve())
    page.wait("!document.querySelector('#budget').disabled")
    at = page.run("document.querySelector('#budget').value")
    page.slide("s.max", let_go=False)
    monkeypatch.setattr(runtime, "costs", runtime.costs.model_copy(update={"exits": ()}))
    page.slide("s.max", let_go=True)
    page.wait("document.querySelector('#refused').textContent")
    assert page.run("document.querySelector('#budget').value") == at
    assert page.text("budget-value") == "2 ms"


def test_a_wrong_token(
    serve: Callable[..., LivePage],
    runtime: Runtime,
    show: Callable[..., Page],
    chromium: Any,
) -> None:
    """Gets a form and nothing else; the right one opens the page, and leaves the address."""
    served = serve(token=TOKEN)
    address = f"http://127.0.0.1:{served.port}/"
    chromium.get(f"{address}?token={TOKEN}X")
    assert Page(chromium).run("document.querySelectorAll('canvas').length") == 0
    chromium.find_element("name", "token").send_keys(TOKEN)
    with Camera(served, runtime):
        chromium.find_element("css selector", "button").click()
        page = Page(chromium)
        page.wait("document.querySelector('#link')?.textContent === 'live'")
        refused = chromium.get_log("browser")  # the page, and an icon that it does not have
        assert refused
        severe = [entry["message"] for entry in refused if entry["level"] == "SEVERE"]
        assert all("401 (Unauthorized)" in message for message in severe)
        assert chromium.current_url == address
        page = show(served)
        page.wait_for_text("link", "live")
        chromium.get(address)  # the cookie is enough now
        page.wait_for_text("link", "live")
    assert page.run("document.cookie") == ""


def test_the_fifth_viewer(serve: Callable[..., LivePage], show: Callable[..., Page]) -> None:
    served = serve()
    watchers = [Watcher(served) for _ in range(4)]
    page = show(served)
    page.wait_for_text("link", "4 viewers are watching already")
    for watcher in watchers:
        watcher.close()


def test_the_end(
    serve: Callable[..., LivePage], runtime: Runtime, show: Callable[..., Page]
) -> None:
    """An end is no accident."""
    served = serve()
    page = show(served)
    page.wait_for_text("link", "live")
    served.close()
    page.wait_for_text("link", "the run has ended")


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_jumps_and_nothing_is_cut_off(
    serve: Callable[..., LivePage], runtime: Runtime, show: Callable[..., Page], width: int
) -> None:
    """All of it is as wide as a phone, and stays where it is while everything arrives."""
    served = serve()
    with Camera(served, runtime):
        page = show(served, width)
        page.wait_for_text("measured-exit-0", "%")
        shifts = page.browser.execute_async_script(
            "const done = arguments[0]; let sum = 0;"
            "new PerformanceObserver((list) => {"
            "  for (const entry of list.getEntries()) sum += entry.value;"
            "}).observe({ type: 'layout-shift', buffered: true });"
            "setTimeout(() => done(sum), 1000);"
        )
        assert shifts < 0.02
        assert page.run("document.documentElement.scrollWidth") <= width
        wide = "[...document.querySelectorAll('main *')].filter((e) => e.checkVisibility() && "
        wide += "e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.id || e.className)"
        assert page.run(wide) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable(
    serve: Callable[..., LivePage], runtime: Runtime, show: Callable[..., Page], scheme: str
) -> None:
    """Text has a contrast of at least 4.5 to what it stands on (WCAG AA); what is operated has a
    name."""
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
      const all = "p, h1, h2, dt, dd, td, th, li, output, figcaption, .chip, .soft";
      return [...document.querySelectorAll(all)]
        .filter((e) => e.textContent.trim() && e.offsetParent && e.id !== "stopped")
        .map((e) => {
          const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
          return [(a + 0.05) / (b + 0.05), e.id || e.textContent.trim().slice(0, 30)];
        }).filter(([contrast]) => contrast < 4.5);
    })()"""
    served = serve()
    served.event(Note("thresholds_changed", "thresholds changed"))
    with Camera(served, runtime):
        page = show(served, scheme=scheme)
        page.wait_for_text("measured-exit-0", "%")
        page.slide("s.max", let_go=False)
        assert page.run(script) == []
    ground = {"light": "rgb(245, 244, 241)", "dark": "rgb(17, 20, 24)"}[scheme]
    assert page.run("getComputedStyle(document.body).backgroundColor") == ground
    assert page.run("document.querySelector('#budget').labels[0].textContent").startswith("Mean")


def test_the_command(chromium: Any, demo_profile: Path) -> None:
    """A camera that sees real scenes: the picture moves, the slider moves the exits, and a wrong
    token gets nothing."""
    command = [str(Path(sys.executable).with_name("dvt-edge")), "run", "--source", "test://"]
    options = ["--profile", str(demo_profile), "--serve", "127.0.0.1:0", "--serve-token", TOKEN]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as run:
        try:
            assert run.stderr is not None
            url = next(found[0] for line in run.stderr if (found := re.search(r"http://\S+", line)))
            chromium.get(url.replace(TOKEN, "wrong" * 4))
            page = Page(chromium)
            assert page.run("document.querySelector('#picture')") is None
            assert any("401" in entry["message"] for entry in chromium.get_log("browser"))
            chromium.get(url)
            page.wait("document.querySelector('#link')?.textContent === 'live'")
            pictures: set[str] = set()
            until = time.monotonic() + 20
            while len(pictures) < 5:
                pictures.add(page.run(PIXELS))
                assert time.monotonic() < until
            page.wait("!document.querySelector('#budget').disabled")
            page.slide("0", let_go=True)
            page.wait("document.querySelector('#measured-exit-0').textContent === '100.0 %'")
            page.slide("s.max", let_go=True)
            page.wait("parseFloat(document.querySelector('#measured-exit-2').textContent) > 5")
        finally:
            run.terminate()
            chromium.get("about:blank")
    assert run.returncode == 0
