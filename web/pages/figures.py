"""How the page of statistics writes figures: with three digits and a unit. One that is not known is a dash."""

from __future__ import annotations

from collections.abc import Callable

from jobs.protocol.stats import SHARES


def formatter(measure: str, part: str = "mean") -> Callable[[float | None], str]:
    """Return the function that formats values of a measure: means, or percentiles such as ``p50``."""
    name = measure.rpartition(".")[2]
    if name in ("prompt_tokens", "output_tokens"):
        return number if part == "mean" else whole
    if name == "rate":
        return number
    return percent if name in SHARES or name == "changed" else seconds


def signed(written: Callable[[float], str]) -> Callable[[float], str]:
    """Return a function that writes the sign of a positive value too."""
    return lambda value: f"{'+' if value > 0 else ''}{written(value)}"


def number(value: float | None) -> str:
    """Return a value with three digits, or more before the point."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def whole(value: float | None) -> str:
    """Return a value without digits after the point."""
    return "–" if value is None else f"{value:,.0f}"


def seconds(value: float | None) -> str:
    """Return a number of seconds in milliseconds, seconds or minutes."""
    if value is None:
        return "–"
    if abs(value) >= 120:
        return f"{value / 60:,.1f} min"
    return f"{value * 1000:.3g} ms" if 0 < abs(value) < 0.9995 else f"{value:.3g} s"


def percent(value: float | None) -> str:
    """Return a share in percent."""
    return "–" if value is None else f"{value * 100:.3g} %"


def points(value: float) -> str:
    """Return a difference of two shares in percentage points."""
    return f"{value * 100:.3g} points"
