"""How a frame's height is shared out."""

from __future__ import annotations

from vattctl.top.view import SESSIONS, TENANTS

# From here on the tables stand beside each other, with so much between them.
WIDE = 150
GAP = 3
FEWEST_MAP_LINES = 3
MOST_MAP_LINES = 12
FEWEST_ROWS = 2


def is_wide(width: int) -> bool:
    return width >= WIDE


def table_width(width: int) -> int:
    return (width - GAP) // 2 if is_wide(width) else width


def map_lines(width: int, height: int, tenants: int, sessions: int) -> int:
    """Of what is left below the head, without the map's title: what the tables do not need, and at least a fifth.

    None where there is no room for a table beside it.
    """
    room = height - 1 - _headers(width)
    wanted = max(tenants, sessions) if is_wide(width) else tenants + sessions
    lines = min(MOST_MAP_LINES, max(FEWEST_MAP_LINES, room // 5, room - wanted))
    return lines if room - lines >= FEWEST_ROWS else 0


def table_rows(width: int, height: int, tenants: int, sessions: int) -> dict[str, int]:
    """How many rows of each are shown in what is left below the map; each gets a half, or what the other leaves."""
    room = max(0, height - _headers(width))
    if is_wide(width):
        return {TENANTS: min(tenants, room), SESSIONS: min(sessions, room)}
    first = min(tenants, max(room // 2, room - sessions))
    return {TENANTS: first, SESSIONS: min(sessions, room - first)}


def _headers(width: int) -> int:
    return 1 if is_wide(width) else 2
