"""How tenants and states of pages look: a colour each, and a letter or sign where there are no colours."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits
# For whoever comes after 62 others.
ANY_LETTER = "+"

# Of the 256 colours that are the same on every terminal: those that are told apart on black and on white, of leased
# pages, and darker ones, of dirty pages. No red and no yellow: those say that something is wrong, or under way.
_COLOURS = ((33, 25), (208, 130), (35, 22), (170, 89), (44, 30), (99, 55), (112, 64), (217, 138), (117, 67), (137, 94))


@dataclass(frozen=True, slots=True)
class Mark:
    """Styles are rich's: the colour of a tenant's leased pages, and of those that it left dirty."""

    letter: str
    style: str
    dirty_style: str

    @property
    def on_style(self) -> str:
        """Of the letter, in its colour."""
        return f"color(16) on {self.style}"


def mark(seat: int) -> Mark:
    leased, dirty = _COLOURS[seat % len(_COLOURS)]
    letter = LETTERS[seat] if seat < len(LETTERS) else ANY_LETTER
    return Mark(letter, f"color({leased})", f"color({dirty})")


def seats(before: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
    """A number for each name: the one it had, else the lowest that nobody has."""
    known = list(names)
    kept = {name: before[name] for name in known if name in before}
    taken = set(kept.values())
    free = (seat for seat in range(len(taken) + len(known)) if seat not in taken)
    return kept | {name: next(free) for name in sorted(set(known) - kept.keys())}


@dataclass(frozen=True, slots=True)
class Look:
    """Of pages in a state. A style of "" is the terminal's background: there is nothing."""

    sign: str
    style: str
    words: str


LOOKS = {
    "leased": Look("?", "color(231)", "leased"),
    "dirty": Look("~", "color(240)", "dirty"),
    "clean": Look("-", "color(248)", "clean"),
    "moving": Look("*", "color(220)", "in between"),
    "quarantined": Look("!", "color(196)", "quarantined"),
    "unbacked": Look(".", "", "unbacked"),
}
BETWEEN = ("creating", "scrubbing", "destroying")


def look(state: str) -> Look:
    return LOOKS.get(state, LOOKS["moving"])
