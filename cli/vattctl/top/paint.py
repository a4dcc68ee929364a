"""Runs of equal signs in a line: what page maps and bars are drawn with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from rich.style import Style
from rich.text import Text

from vattctl.top.marks import Look, Mark, look


@dataclass(frozen=True, slots=True)
class Paint:
    """Of one place: a sign where there are no colours, else a colour; "" is the terminal's background."""

    sign: str
    style: str


NOTHING = Paint(" ", "")
# Memory that is not there, where neighbours are only colours.
NOWHERE = "·"


def paint_of(state: str, owner: Mark | None) -> Paint:
    """`owner` is None where nobody's pages are meant, or nobody's in particular."""
    known: Look = look(state)
    if owner is not None and state == "leased":
        return Paint(owner.letter, owner.style)
    if owner is not None and state == "dirty":
        return Paint(known.sign, owner.dirty_style)
    return Paint(known.sign, known.style)


def line_of(paints: Iterable[Paint], *, letters: bool) -> Text:
    """One place a paint. Letters are coloured too: where there are no colours, nobody sees that."""
    text = Text(no_wrap=True)
    for paint, run in groupby(paints):
        count = sum(1 for _ in run)
        if letters:
            text.append(paint.sign * count, paint.style)
        elif paint.style:
            text.append(" " * count, Style.parse(f"on {paint.style}"))
        else:
            text.append((" " if paint is NOTHING else NOWHERE) * count, "dim")
    return text


def halves_of(uppers: Iterable[Paint], lowers: Iterable[Paint]) -> Text:
    """Two paints a place, one above the other."""
    text = Text(no_wrap=True)
    for (upper, lower), run in groupby(zip(uppers, lowers, strict=True)):
        count = sum(1 for _ in run)
        if not upper.style and not lower.style:
            text.append((" " if upper is NOTHING else NOWHERE) * count, "dim")
        elif upper.style == lower.style:
            text.append(" " * count, f"on {upper.style}")
        elif not upper.style:
            text.append("▄" * count, lower.style)
        elif not lower.style:
            text.append("▀" * count, upper.style)
        else:
            text.append("▀" * count, f"{upper.style} on {lower.style}")
    return text
