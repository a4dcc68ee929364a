"""Curves of one line."""

from __future__ import annotations

from collections.abc import Sequence

LEVELS = "▁▂▃▄▅▆▇█"


def curve(values: Sequence[float | None], width: int) -> str:
    """The last values, the highest of them a full block; a space is one that nobody measured."""
    shown = list(values)[-width:] if width > 0 else []
    highest = max((value for value in shown if value), default=0.0)
    return "".join(_level(value, highest) for value in shown).rjust(max(0, width))


def _level(value: float | None, highest: float) -> str:
    if not value:
        return " " if value is None else LEVELS[0]
    return LEVELS[min(len(LEVELS) - 1, int(value / highest * len(LEVELS)))]
