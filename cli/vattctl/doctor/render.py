"""Findings for people, and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from vattctl.doctor.finding import Finding, State
from vattctl.words import some_of

STYLES = {State.OK: "green", State.NOTE: "cyan", State.WARNING: "yellow", State.BROKEN: "red"}
STATE_WIDTH = max(len(state.value) for state in State)


def render(findings: Sequence[Finding]) -> RenderableType:
    name_width = max((len(one.name) for one in findings), default=0)
    rows = [part for alike in _alike(findings) for part in _rows(alike, name_width)]
    return Group(*rows, Text(), _sum(findings))


def _rows(alike: Sequence[Finding], name_width: int) -> Iterator[RenderableType]:
    """What is to be typed has a line of its own, and as much of it as there is."""
    first = alike[0]
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=STATE_WIDTH, no_wrap=True)
    grid.add_column(width=name_width, no_wrap=True)
    grid.add_column(overflow="fold")
    subjects = some_of(one.subject for one in alike if one.subject)
    what = Text(f"{subjects}: " if subjects else "", style="bold").append(first.what, style="not bold")
    grid.add_row(Text(first.state.value, style=STYLES[first.state]), first.name, what)
    yield grid
    for at, fix in enumerate(first.fixes):
        yield _Fix("   or " if at else "  fix ", fix)


@dataclass(frozen=True, slots=True)
class _Fix:
    """A command that a shell takes as it stands, also where it has more than one line."""

    title: str
    command: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        first, *rest = self.command.split(" --")
        lines = [first]
        for option in rest:
            if len(f"{self.title}{lines[-1]} --{option} \\") <= options.max_width:
                lines[-1] += f" --{option}"
            else:
                lines.append(f"    --{option}")
        indent = "\n" + " " * len(self.title)
        yield Text.assemble((self.title, "dim"), (f" \\{indent}".join(lines), "bold"), overflow="fold")


def _alike(findings: Sequence[Finding]) -> list[list[Finding]]:
    """What is the same of several GPUs is said once."""
    groups: dict[tuple[str, State, str, tuple[str, ...]], list[Finding]] = {}
    for one in findings:
        groups.setdefault((one.name, one.state, one.what, one.fixes), []).append(one)
    return list(groups.values())


def _sum(findings: Sequence[Finding]) -> Text:
    counts = Counter(one.state for one in findings)
    text = Text("" if counts[State.BROKEN] else "nothing is broken")
    for state in (State.BROKEN, State.WARNING, State.NOTE, State.OK):
        if counts[state]:
            plural = "s" if counts[state] > 1 and state in (State.WARNING, State.NOTE) else ""
            text.append(", " if text else "").append(f"{counts[state]} {state.value}{plural}", style=STYLES[state])
    return text


def to_plain(findings: Sequence[Finding], version: str) -> dict[str, Any]:
    return {
        "version": version,
        "is_broken": any(one.state is State.BROKEN for one in findings),
        "findings": [
            {
                "name": one.name,
                "state": one.state.value,
                "subject": one.subject,
                "what": one.what,
                "fixes": list(one.fixes),
            }
            for one in findings
        ],
    }
