"""A lease that is asked for, and what policy knows of whoever asks.

Pure: time is an argument. Counts are pages.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from vattd.guarantee import Guarantee

# Times to gather and recesses take turns, and each turn is a wake-up.
SHORTEST_HOLD_S = 0.001


class Purpose(enum.Enum):
    ADMIT = "admit"  # a new request: may queue
    GROW = "grow"  # a running one: it holds pages, so it must never wait for others to return theirs
    AHEAD = "ahead"  # nobody needs them yet: only what nobody else waits for


@dataclass(frozen=True, slots=True)
class Wish:
    """A lease that is asked for. Of two with the same session and request id the second is a repeat of the first."""

    session_id: str
    request_id: str
    page_count: int
    min_page_count: int
    purpose: Purpose
    deadline_s: float  # until then it may queue

    def __post_init__(self) -> None:
        if not 1 <= self.min_page_count <= self.page_count:
            raise ValueError(f"not a wish: {self}")

    @property
    def key(self) -> tuple[str, str]:
        return self.session_id, self.request_id

    def may_wait(self, now_s: float) -> bool:
        return self.purpose is Purpose.ADMIT and now_s < self.deadline_s


class Party(Protocol):
    """A tenant, as policy sees it."""

    @property
    def name(self) -> str: ...
    @property
    def guarantee(self) -> Guarantee: ...
    @property
    def held_pages(self) -> int:
        """Leased by its sessions."""


class Books(Protocol):
    """The ledger, as policy sees it."""

    @property
    def capacity_pages(self) -> int:
        """What could be lent at one time now. Less than `limit_pages` while other programs use the device's memory."""

    @property
    def limit_pages(self) -> int: ...
    @property
    def lent_pages(self) -> int: ...
    @property
    def promised_pages(self) -> int:
        """The sum of all mins."""

    def promised(self) -> Iterable[Party]:
        """Tenants with a min."""

    def holding(self) -> Iterable[Party]:
        """Tenants that hold pages."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A wish that was not served yet. `awarded_pages` may be made and lent to it; 0: it queues."""

    wish: Wish
    party: Party
    since_s: float
    number: int  # in order of arrival
    awarded_pages: int = 0
    gathered_since_s: float | None = None  # when pages were first gathered for it


@dataclass(frozen=True, slots=True)
class Timing:
    """`head_hold_s` is how long pages are gathered at first for a wish that others could be served before; `ageing_s`
    how much later than it came a wish counts, for each share that its tenant has beyond its min."""

    head_hold_s: float = 10.0
    ageing_s: float = 10.0

    def __post_init__(self) -> None:
        if not (self.head_hold_s == 0 or self.head_hold_s >= SHORTEST_HOLD_S) or self.ageing_s < 0:
            raise ValueError(f"not times: {self}")
