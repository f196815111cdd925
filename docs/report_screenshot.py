"""Picture of a report: as on a desk, light, and as on a phone, dark.

    python docs/report_screenshot.py REPORT.html docs/report.png

Needs chromium, chromedriver and the extra ``dev``.
"""

from __future__ import annotations

import base64
import io
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver

GAP_PX = 28
VIEWS = (("light", 1200, 1016), ("dark", 390, 960))
"""Scheme, width and height in CSS pixels."""


def picture(browser: Any, page: Path, scheme: str, width: int, height: int) -> Image.Image:
    """The top of ``page``."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.resolve().as_uri())
    while browser.execute_script("return document.documentElement.dataset.charts") != "drawn":
        time.sleep(0.1)
    time.sleep(0.5)  # the last frames
    png = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
    return Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")


def main(page: Path, output: Path) -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("chromium-browser")
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    try:
        pictures = [picture(browser, page, *view) for view in VIEWS]
    finally:
        browser.quit()
    width = sum(p.width for p in pictures) + GAP_PX * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, max(p.height for p in pictures)), "white")
    left = 0
    for part in pictures:
        sheet.paste(part, (left, (sheet.height - part.height) // 2))
        left += part.width + GAP_PX
    sheet.quantize(256, dither=Image.Dither.NONE).save(output, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
