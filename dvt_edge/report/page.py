"""The page: one HTML file that carries its style, its script, its data and its plotting library."""

from __future__ import annotations

import base64
import gzip
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import dvt_edge
from dvt_edge.files.replacing import check_writable, write_text
from dvt_edge.report.data import ReportData
from dvt_edge.requirements import need

_HERE = Path(__file__).parent


def write_report(path: Path, data: ReportData) -> None:
    """Write ``data`` as a page to ``path``; a reader sees the old file or the new one.

    Raises :class:`~dvt_edge.errors.ConfigError` where ``path`` cannot be written, or the extra
    ``report`` is not installed.
    """
    text = render(data)
    check_writable(path)
    write_text(path, text)


def check_libraries() -> None:
    """Raise :class:`~dvt_edge.errors.ConfigError` without the extra ``report``."""
    need("a report", "jinja2", "plotly")


def render(data: ReportData) -> str:
    """The page as text. Raises :class:`~dvt_edge.errors.ConfigError` without the extra
    ``report``."""
    check_libraries()
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {
        "folder": _folder,
        "moment": lambda text: f"{datetime.fromisoformat(text):%Y-%m-%d, %H:%M %Z}",
        "ms": _ms,
        "number": _number,
        "percent": _percent,
    }
    return environment.get_template("report.html").render(
        data=data,
        style=(_HERE / "report.css").read_text(encoding="utf-8"),
        script=(_HERE / "report.js").read_text(encoding="utf-8"),
        plotly=_plotly(),
        values=_live_values(data),
        version=dvt_edge.__version__,
    )


def _live_values(data: ReportData) -> dict[str, Any]:
    """What the script needs; the rest of ``data`` is in the page's text already."""
    values: dict[str, Any] = data.model_dump(mode="json", exclude={"gallery", "manifest"})
    if data.measurement.data:  # of a thousand classes the page shows a few
        shown = {row.name for row in data.classes}
        shares = data.measurement.data.class_exit_fraction
        values["measurement"]["data"]["class_exit_fraction"] = {
            name: share for name, share in shares.items() if name in shown
        }
    return values


@cache
def _plotly() -> str:
    """Plotly's script, gzipped, in base64: 2 MB instead of 5. Browsers unpack it."""
    from plotly.offline import get_plotlyjs

    packed = gzip.compress(get_plotlyjs().encode(), mtime=0)  # the same page for the same data
    return base64.b64encode(packed).decode("ascii")


def _folder(text: str) -> str:
    """The last two parts of a path, which fit a title on a phone."""
    parts = Path(text).parts
    return text if len(parts) <= 2 else f"…/{parts[-2]}/{parts[-1]}"


def _ms(value: float) -> str:
    """Milliseconds with three or four digits that say something."""
    digits = 3 if value < 10 else 2 if value < 100 else 1
    return f"{value:.{digits}f}"


def _number(value: float, digits: int = 0) -> str:
    return f"{value:,.{digits}f}"


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"
