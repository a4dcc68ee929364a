"""The keys, and what help says."""

from __future__ import annotations

from rich.text import Text

KEYS = [
    ("tab", "go to the other table: that with the reversed title"),
    ("s, S", "sort by the next column, by the one before"),
    ("r", "reverse the order"),
    ("arrows", "scroll; also j and k, page up and down, home and end"),
    ("l", "letters or colours in the page map"),
    ("g, G", "go to the next vattd, to the one before"),
    ("space", "pause, and go on"),
    ("ctrl+z", "back to the shell; fg comes back here"),
    ("q", "quit"),
]

WORDS = [
    ("others", "memory that is neither free nor vattd's"),
    ("wait", "how long leases waited that were just granted, or one waits now"),
    ("PAGES", "a cell is what most of its pages are, in the order of their ids"),
    ("unbacked", "a page without memory: made when it is needed"),
    ("MAPPED", "of the leased memory, what an engine has in use"),
    ("USED", "how much of the mapped memory tokens fill"),
    ("PROMISE", "is the min kept? `vattctl tenants` says by whom it is broken"),
    ("LEASE/s", "leases granted; B/s: what they brought; DENY/s: refused"),
    ("asked back", "vattd wants pages back; overdue: did not get them in time"),
]
_NAME_WIDTH = 10


def help_text() -> Text:
    """At most 76 columns and 22 lines: with a border that is the smallest terminal."""
    lines = [_entry(*one) for one in KEYS] + [Text()] + [_entry(*one) for one in WORDS]
    return Text("\n").join([*lines, Text(), Text("any key: back", "dim")])


def key_line(*, several: bool) -> Text:
    """The last line."""
    keys = [("?", "help"), ("q", "quit"), ("tab", "table"), ("s", "sort"), ("r", "reverse"), ("l", "letters")]
    keys += [("space", "pause"), *([("g", "vattd")] if several else [])]
    return Text("  ", no_wrap=True).join([Text.assemble((key, "bold"), (f" {words}", "dim")) for key, words in keys])


def _entry(name: str, words: str) -> Text:
    return Text.assemble((name.ljust(_NAME_WIDTH), "bold"), "  ", words)
