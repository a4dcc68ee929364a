"""How a frame's room is shared out."""

from __future__ import annotations

from vattctl.top.view import SESSIONS, TENANTS

# From here on tables that do not fit below each other stand beside each other, with so much between them.
WIDE = 150
GAP = 3
FEWEST_MAP_LINES = 3
MOST_MAP_LINES = 12
FEWEST_ROWS = 2


def are_beside(width: int, height: int, tenants: int, sessions: int) -> bool:
    """The tables, in what is left below the head. Below each other they have room for more columns."""
    return width >= WIDE and tenants + sessions > height - _map_share(height) - _headers(False)


def table_width(width: int, *, beside: bool) -> int:
    return (width - GAP) // 2 if beside else width


def map_lines(height: int, tenants: int, sessions: int, *, beside: bool) -> int:
    """Of what is left below the head, without the map's title: what the tables do not need, and at least a fifth.

    None where there is no room for a table beside it.
    """
    room = height - 1 - _headers(beside)
    wanted = max(tenants, sessions) if beside else tenants + sessions
    lines = min(MOST_MAP_LINES, max(_map_share(height) - 1, room - wanted))
    return lines if room - lines >= FEWEST_ROWS else 0


def table_rows(height: int, tenants: int, sessions: int, *, beside: bool) -> dict[str, int]:
    """How many rows of each are shown in what is left below the map; each gets a half, or what the other leaves."""
    room = max(0, height - _headers(beside))
    if beside:
        return {TENANTS: min(tenants, room), SESSIONS: min(sessions, room)}
    first = min(tenants, max(room // 2, room - sessions))
    return {TENANTS: first, SESSIONS: min(sessions, room - first)}


def _map_share(height: int) -> int:
    """With its title."""
    return 1 + max(FEWEST_MAP_LINES, height // 5)


def _headers(beside: bool) -> int:
    return 1 if beside else 2
