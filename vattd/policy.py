"""Whose turn it is: the leases that wait for pages, in the order in which they are served.

Pure: time is an argument.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass


class Purpose(enum.Enum):
    ADMIT = "admit"  # a new request: may queue
    GROW = "grow"  # a running one: it holds pages, so it must never wait for others to return theirs


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


class LeaseQueue:
    """Wishes that wait: running requests first, then new ones, each in order of arrival.

    Only the first of the new ones is worked for, so a large one is not starved by small ones behind it.
    """

    def __init__(self) -> None:
        self._of: dict[Purpose, dict[tuple[str, str], Wish]] = {Purpose.GROW: {}, Purpose.ADMIT: {}}
        self._waiting_of: Counter[str] = Counter()
        self.waiting_pages = 0

    def __iter__(self) -> Iterator[Wish]:
        """Copies, so that serving may change the queue."""
        for wishes in self._of.values():
            yield from list(wishes.values())

    def add(self, wish: Wish) -> None:
        """Raises ValueError if the same wish waits already."""
        if any(wish.key in wishes for wishes in self._of.values()):
            raise ValueError(f"{wish} waits already")
        self._of[wish.purpose][wish.key] = wish
        self._waiting_of[wish.session_id] += 1
        self.waiting_pages += wish.page_count

    def remove(self, wish: Wish) -> None:
        del self._of[wish.purpose][wish.key]
        self.waiting_pages -= wish.page_count
        self._waiting_of[wish.session_id] -= 1
        if not self._waiting_of[wish.session_id]:
            del self._waiting_of[wish.session_id]

    def must_wait(self, wish: Wish) -> bool:
        """Is somebody ahead of this new wish?"""
        return bool(self._of[Purpose.GROW] or (wish.purpose is Purpose.ADMIT and self._of[Purpose.ADMIT]))

    def waiting_of(self, session_id: str) -> int:
        """How many wishes of a session wait."""
        return self._waiting_of[session_id]

    def next_deadline_s(self, now_s: float) -> float | None:
        """When the next wish's time to wait is over, of those whose is not yet."""
        return min((wish.deadline_s for wish in self._of[Purpose.ADMIT].values() if wish.may_wait(now_s)), default=None)
