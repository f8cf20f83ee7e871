"""Units at the edge: "50ms" <-> 0.050 s. Inside the package every quantity is in SI units and its name says so."""

from __future__ import annotations

import re
from numbers import Real

__all__ = [
    "METRIC_NAMES",
    "METRIC_TITLES",
    "METRICS",
    "format_limit",
    "format_quantity",
    "format_range",
    "format_value",
    "parse_duration",
    "parse_quantity",
    "seconds_as_text",
]

METRICS = ("latency_s", "energy_j", "size_bytes", "macs")
METRIC_NAMES = {"latency": "latency_s", "energy": "energy_j", "size": "size_bytes", "macs": "macs"}
"""As people write them in options."""
METRIC_TITLES = {"latency_s": "latency", "energy_j": "energy", "size_bytes": "size", "macs": "MACs"}
"""As people read them."""

_UNITS: dict[str, tuple[str, float]] = {
    "ns": ("latency_s", 1e-9),
    "us": ("latency_s", 1e-6),
    "µs": ("latency_s", 1e-6),
    "ms": ("latency_s", 1e-3),
    "s": ("latency_s", 1.0),
    "min": ("latency_s", 60.0),
    "m": ("latency_s", 60.0),
    "h": ("latency_s", 3600.0),
    "pj": ("energy_j", 1e-12),
    "nj": ("energy_j", 1e-9),
    "uj": ("energy_j", 1e-6),
    "µj": ("energy_j", 1e-6),
    "mj": ("energy_j", 1e-3),
    "j": ("energy_j", 1.0),
    "b": ("size_bytes", 1.0),
    "kb": ("size_bytes", 1e3),
    "mb": ("size_bytes", 1e6),
    "gb": ("size_bytes", 1e9),
    "kib": ("size_bytes", 1024.0),
    "mib": ("size_bytes", 1024.0**2),
    "gib": ("size_bytes", 1024.0**3),
    "macs": ("macs", 1.0),
    "kmacs": ("macs", 1e3),
    "mmacs": ("macs", 1e6),
    "gmacs": ("macs", 1e9),
}
_MICRO, _MU = "\u00b5", "\u03bc"
"""The micro sign, and the Greek letter that looks like it and that other keyboards type."""
_QUANTITY = re.compile(rf"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*([a-zA-Z{_MICRO}{_MU}]+)\s*")
_SCALES: dict[str, tuple[tuple[float, str], ...]] = {
    "latency_s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")),
    "energy_j": ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"), (1e-9, "nJ"), (1e-12, "pJ")),
    "size_bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "macs": ((1e9, "GMACs"), (1e6, "MMACs"), (1e3, "kMACs"), (1.0, "MACs")),
}


def parse_quantity(text: str) -> tuple[str, float]:
    """Read "50ms" as ("latency_s", 0.05): the metric that the unit measures, and the value in SI units.

    Durations accept m, min and h too. Units are case-insensitive: "mj" and "mJ" are both millijoules.

    Raises:
        ValueError: no number, no unit, or a unit that is not known; the message lists the units.
    """
    match = _QUANTITY.fullmatch(text)
    unit = "" if match is None else match[2].lower().replace(_MU, _MICRO)
    if match is None or unit not in _UNITS:
        raise ValueError(f"{text!r} is not a number with a unit (known units: {', '.join(sorted(_UNITS))})")
    metric, factor = _UNITS[unit]
    return metric, float(match[1]) * factor


def parse_duration(text: str) -> float:
    """Read "90s", "10m" or "1h" as seconds; "0" and "off" are 0.

    Raises:
        ValueError: not a duration, or below zero.
    """
    if text.strip().lower() in ("0", "off", "none"):
        return 0.0
    metric, seconds = parse_quantity(text)
    if metric != "latency_s" or not 0 <= seconds < float("inf"):
        raise ValueError(f"{text!r} is not a duration")
    return seconds


def seconds_as_text(value: object) -> object:
    """A duration for `parse_duration`: seconds as text, anything else as it is."""
    return f"{value}s" if isinstance(value, Real) and not isinstance(value, bool) else value


def format_quantity(metric: str, value: float) -> str:
    """Render a value of a metric for people, with its unit: ("latency_s", 0.0431) -> "43.1 ms"."""
    number, unit = format_value(metric, value)
    return f"{number} {unit}"


def format_limit(metric: str, value: float) -> str:
    """A limit that `value` holds, for people to give: rounded up, so that what is printed is enough when it is typed back."""
    number, unit = format_value(metric, value)
    digits = len(number.partition(".")[2])
    while parse_quantity(f"{number}{unit}")[1] < value:
        number = f"{float(number) + 10**-digits:.{digits}f}"
    return f"{number} {unit}"


def format_range(metric: str, low: float, high: float, around: float) -> str:
    """A range in the unit that suits what lies in it: ("latency_s", 0.0428, 0.0435, 0.0431) -> "42.8 to 43.5 ms"."""
    number, unit = format_value(metric, around)
    factor = next(factor for factor, name in _SCALES[metric] if name == unit)
    digits = len(number.partition(".")[2])
    return f"{low / factor:.{digits}f} to {high / factor:.{digits}f} {unit}"


def format_value(metric: str, value: float) -> tuple[str, str]:
    """The number (three significant digits or more) and the unit that suit a value of `metric`.

    Raises:
        KeyError: `metric` is not one of METRICS.
    """
    scales = _SCALES[metric]
    factor, unit = next(((f, u) for f, u in scales if abs(value) >= f), scales[-1])
    scaled = value / factor
    digits = 0 if abs(scaled) >= 1000 else 1 if abs(scaled) >= 10 else 2
    return f"{scaled:.{digits}f}", unit
