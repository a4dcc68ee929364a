"""What a check finds, and what to type about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

# Behind a `pip install .`: the package is on no index.
IN_SOURCES = "  # in vattd's source folder"


class State(enum.Enum):
    OK = "ok"
    NOTE = "note"  # to know; nothing is wrong
    WARNING = "warning"  # works, but less well than it could, or until something happens
    BROKEN = "broken"  # does not work


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `fixes` are alternatives, each to be typed; what is wrong has at least one, and what is
    right has none."""

    name: str
    state: State
    what: str
    fixes: tuple[str, ...] = ()
    subject: str = ""  # which GPU or vattd, where there may be several

    def __post_init__(self) -> None:
        is_wrong = self.state in (State.WARNING, State.BROKEN)
        if not self.what or (is_wrong and not self.fixes) or (self.state is State.OK and self.fixes):
            raise ValueError(f"not a finding: {self}")


def ok(name: str, what: str, subject: str = "") -> Finding:
    return Finding(name, State.OK, what, (), subject)


def note(name: str, what: str, *fixes: str, subject: str = "") -> Finding:
    return Finding(name, State.NOTE, what, fixes, subject)


def warning(name: str, what: str, *fixes: str, subject: str = "") -> Finding:
    return Finding(name, State.WARNING, what, fixes, subject)


def broken(name: str, what: str, *fixes: str, subject: str = "") -> Finding:
    return Finding(name, State.BROKEN, what, fixes, subject)
