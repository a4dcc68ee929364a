"""A pool in a few lines: how many pages are in which state, and where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.text import Text

from vatt.sizes import format_size
from vatt.v1 import vatt_pb2 as pb
from vattctl.output import new_table
from vattctl.top.marks import mark, seats
from vattctl.top.page_map import draw, legend

STATE_STYLES = {"leased": "green", "clean": "cyan", "dirty": "yellow", "quarantined": "red", "unbacked": "dim"}
BAR_WIDTH, LEAST_BAR_WIDTH = 40, 5
# Of the map, which is one line of 80 columns with its title.
MAP_CELLS = 72
MAP_TITLE = "MAP   "


def state_table(pool: pb.Pool) -> RenderableType:
    """The states that some page is in: with all eight it would take half of a terminal."""
    table = new_table()
    table.add_column("POOL", no_wrap=True)
    for title in ("PAGES", "SIZE", "SHARE"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    whole = sum(row.page_count for row in pool.pages_by_state) or 1
    for row in pool.pages_by_state:
        if row.page_count:
            share = row.page_count / whole
            size = format_size(row.page_count * pool.page_size_bytes)
            bar = _Bar(share, STATE_STYLES.get(row.state, ""))
            table.add_row(row.state, f"{row.page_count:,}", size, f"{share:.1%}", bar)
    return table


@dataclass(frozen=True, slots=True)
class MapLine:
    """The pages in order, a letter for each tenant, and below it whose those are; nothing where it does not fit."""

    pool: pb.Pool
    page_map: pb.GetPageMapResponse
    tenants: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width - len(MAP_TITLE)
        if not self.page_map.cells or width < MAP_CELLS:
            return
        seated = seats({}, self.tenants)
        [line] = draw(self.page_map, seated, MAP_CELLS, 1, letters=True)
        yield Text.assemble(MAP_TITLE, line)
        leased = {cell.tenant for cell in self.page_map.cells if cell.state == "leased" and cell.tenant}
        names = sorted(self.page_map.tenants[number - 1] for number in leased)
        owners = [Text.assemble((mark(seated[name]).letter, mark(seated[name]).style), f" {name}") for name in names]
        words = Text("  ").join([*owners, legend(self.pool, letters=True)])
        words.truncate(MAP_CELLS, overflow="ellipsis")
        yield Text.assemble(" " * len(MAP_TITLE), words)


@dataclass(frozen=True, slots=True)
class _Bar:
    """As long as its share of the width that there is; what is there is seen."""

    share: float
    style: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(LEAST_BAR_WIDTH, BAR_WIDTH)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("#" * max(1, round(self.share * min(BAR_WIDTH, options.max_width))), self.style)
