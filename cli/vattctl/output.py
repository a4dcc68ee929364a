"""How vattctl prints: tables for people, JSON with the proto's names and raw numbers for programs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from vatt.command_line import output_option as output_option
from vatt.plain import to_plain as to_plain
from vattctl.daemon import Unreachable

# Where the output is piped and nobody says COLUMNS, a table is as wide as it needs: this holds the longest names.
PIPED_WIDTH = 500
DEFAULT_WIDTH = 80


def show(renderable: RenderableType) -> None:
    """On stdout. rich honours NO_COLOR and COLUMNS, and uses no escape codes where nobody watches."""
    stdout_console().print(_Trimmed(renderable), crop=False)


def stdout_console() -> Console:
    """As wide as the terminal, or as COLUMNS says; where neither is, as it ever needs to be."""
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() and int(columns) > 0 else None
    console = Console(highlight=False, width=width)
    if width is None and not console.is_terminal:
        console.width = PIPED_WIDTH
    elif console.width < 1:  # COLUMNS=0
        console.width = DEFAULT_WIDTH
    return console


def new_table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))


def name_cell(words: str) -> Text:
    """Anybody's words in one line of a table: no markup, and cut short where the width is needed for figures. What is
    cut is shown whole below the row: see `Below`."""
    return Text(words, no_wrap=True, overflow="ellipsis")


def spaced(parts: Iterable[RenderableType]) -> RenderableType:
    """One below the other, an empty line between two."""
    lines = [line for part in parts for line in (part, Text())]
    return Group(*lines[:-1])


def unreachable_words(unreachable: Sequence[Unreachable]) -> list[Text]:
    """Nothing if all answer."""
    lines = [f"{one.sockets.device}: {one.error}" for one in unreachable]
    return [Text("\n".join(lines), style="red")] if lines else []


@dataclass(frozen=True, slots=True)
class Below:
    """What stands below a row: its `names` that were cut short, whole, by what they name; then `notes`."""

    names: Mapping[str, str]
    notes: Sequence[Text]


class NotedTable:
    """A table of rows of one line each, with lines of words below a row, which wrap where figures do not."""

    def __init__(self, table: Table, below: Iterable[Below]) -> None:
        self._table, self._below = table, list(below)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        head, *rows = console.render_lines(self._table, options, pad=False)
        yield from [*head, Segment.line()]
        for row, below in zip(rows, self._below, strict=True):
            yield from [*row, Segment.line()]
            shown = "".join(segment.text for segment in row)
            whole = [Text(f"{what} {name}") for what, name in below.names.items() if name not in shown]
            for note in [*whole, *below.notes]:
                yield Padding(note, (0, 0, 0, 2), expand=False)


class _Trimmed:
    """Without spaces at the ends of lines, which cells are filled up with."""

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in console.render_lines(self._inner, options, pad=False):
            while line and not line[-1].text.rstrip(" "):
                line.pop()
            if line:
                last = line.pop()
                line.append(Segment(last.text.rstrip(" "), last.style, last.control))
            yield from [*line, Segment.line()]


def as_json(plain: Any) -> str:
    return json.dumps(plain, indent=2)


def daemons_json(daemons: Sequence[Any], unreachable: Sequence[Unreachable]) -> str:
    """The one shape of all that is asked of several daemons."""
    lost = [{"device": one.sockets.device, "error": str(one.error)} for one in unreachable]
    return as_json({"daemons": daemons, "unreachable": lost})


def verb_json(device: str, **fields: Any) -> str:
    """The one shape of what a verb did at one vattd."""
    return as_json({"device": device, **fields})
