"""The pool as a picture of cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.text import Text

from vatt.sizes import format_size
from vatt.v1 import vatt_pb2 as pb
from vattctl.top.marks import BETWEEN, LOOKS, mark
from vattctl.top.paint import NOTHING, Paint, halves_of, line_of, paint_of

# What vattd answers with at most.
MOST_CELLS = 8192
# Places that a cell of a small pool may take.
WIDEST_CELL = 4


def capacity(width: int, height: int, *, letters: bool) -> int:
    """How many cells to ask for: a place holds one letter, or two colours."""
    return max(1, min(MOST_CELLS, width * height * (1 if letters else 2)))


def draw(
    page_map: pb.GetPageMapResponse, seats: Mapping[str, int], width: int, height: int, *, letters: bool
) -> list[Text]:
    """At most `height` lines. A map that was asked for another size is cut where it does not fit."""
    if width < 1 or height < 1:
        return []
    cells = _paints(page_map, seats)[: capacity(width, height, letters=letters)]
    for wide in range(min(WIDEST_CELL, width), 0, -1):
        rows = _rows(cells, width // wide)
        if len(rows) <= height:
            return [line_of((cell for cell in row for _ in range(wide)), letters=letters) for row in rows]
    rows = _rows(cells, width)
    full = [[*row, *[NOTHING] * (width - len(row))] for row in [*rows, *[[]] * (len(rows) % 2)]]
    return [halves_of(upper, lower) for upper, lower in zip(full[::2], full[1::2], strict=True)]


def title(pool: pb.Pool, page_map: pb.GetPageMapResponse) -> Text:
    pages = sum(row.page_count for row in pool.pages_by_state)
    text = Text("PAGES", "bold")
    text.append(f"  {pages:,} of {format_size(pool.page_size_bytes)}", "not bold")
    if page_map.pages_per_cell > 1:
        text.append(f", {page_map.pages_per_cell:,} a cell", "not bold")
    return text


def legend(pool: pb.Pool, *, letters: bool) -> Text:
    """Of the states that some page is in; whose the leased are, the table of tenants shows."""
    present = {row.state for row in pool.pages_by_state if row.page_count}
    text = Text()
    for state, look in LOOKS.items():
        if state == "leased" or not (state in present or (state == "moving" and present.intersection(BETWEEN))):
            continue
        text.append("  " if text else "")
        if letters or not look.style:
            text.append(look.sign if letters else "·", look.style or "dim").append(f" {look.words}")
        elif state == "dirty":
            text.append("darker: dirty")
        else:
            text.append("  ", f"on {look.style}").append(f" {look.words}")
    return text


def _paints(page_map: pb.GetPageMapResponse, seats: Mapping[str, int]) -> list[Paint]:
    marks = [mark(seats[name]) if name in seats else None for name in page_map.tenants]
    made: dict[tuple[str, int], Paint] = {}  # few differ, and a pool has thousands of cells
    paints = []
    for cell in page_map.cells:
        kind = (cell.state, cell.tenant)
        if kind not in made:
            owner = marks[cell.tenant - 1] if 0 < cell.tenant <= len(marks) else None
            made[kind] = paint_of(cell.state, owner)
        paints.append(made[kind])
    return paints


def _rows(cells: Sequence[Paint], width: int) -> list[list[Paint]]:
    return [list(cells[at : at + width]) for at in range(0, len(cells), width)]
