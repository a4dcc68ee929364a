"""Lengths of time as people write them: `500ms`, `30s`, `5m`, `2h`, `7d`, `90`."""

from __future__ import annotations

import re

from vatt.errors import InvalidRequest

_UNITS_S = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*(ms|s|m|h|d|)\s*")


def parse_duration(text: str) -> float:
    """Seconds. Raises InvalidRequest with an example."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise InvalidRequest(f"{text!r} is not a length of time: write for example 500ms, 30s, 5m or 2h")
    return float(match[1]) * _UNITS_S[match[2]]


def format_duration(length_s: float) -> str:
    """For people: `0.4 s`, `12 s`, `3 m 5 s`, `2 d 4 h`; the two largest units that say something."""
    if length_s < 10:
        return f"{length_s:.1f} s"
    seconds = round(length_s)
    parts = []
    for unit, size_s in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, size_s)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
