"""What all pages share: the base template, and the format of numbers, times and sizes."""

import base64
import datetime
from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2

MOST_TILES_IN_A_ROW = 7


def page_template(package: str, name: str = "template.html") -> jinja2.Template:
    """Load a template of a package; it may extend base.html. Autoescape is on, since labels and file names are user
    data."""
    loader = jinja2.FunctionLoader(lambda included: _text_of("raytrain.reports", included))
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "number": number,
        "clock": _clock,
        "size": _size,
        "in_a_row": tiles_in_a_row,
        "share": _share,
    }
    return environment.from_string(_text_of(package, name))


def _text_of(package: str, name: str) -> str:
    return (resources.files(package) / name).read_text(encoding="utf-8")


def embedded(figures: Mapping[str, bytes]) -> dict[str, str]:
    """PNGs in base64, for data URIs."""
    return {name: base64.b64encode(png).decode() for name, png in figures.items()}


def number(value: Any) -> str:
    """Format a float with four decimals and an integer with thousands separators."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def duration(seconds: float) -> str:
    """Format a duration as minutes and seconds, or as hours and minutes."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s"


def _share(of: tuple[int, int]) -> str:
    """(number, of how many) as a percentage."""
    return f"{of[0] / of[1]:.1%}" if of[1] else ""


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"


def _clock(time_s: float | None) -> str:
    if time_s is None:
        return ""
    moment = datetime.datetime.fromtimestamp(time_s, tz=datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def tiles_in_a_row(num_tiles: int) -> int:
    """Number of tiles per row that makes the rows as even as possible."""
    num_rows = -(-num_tiles // MOST_TILES_IN_A_ROW)
    return -(-num_tiles // max(1, num_rows))
