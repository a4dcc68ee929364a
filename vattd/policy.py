"""Whose turn it is: the leases that wait for pages, in the order in which they are served.

Pure: time is an argument.
"""

from __future__ import annotations

import enum
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
        self._wishes: dict[tuple[str, str], Wish] = {}

    def __iter__(self) -> Iterator[Wish]:
        """A copy, so that serving may change the queue."""
        return iter(sorted(self._wishes.values(), key=lambda wish: wish.purpose is Purpose.ADMIT))

    def __len__(self) -> int:
        return len(self._wishes)

    def add(self, wish: Wish) -> None:
        self._wishes.setdefault(wish.key, wish)

    def remove(self, wish: Wish) -> None:
        self._wishes.pop(wish.key, None)

    def must_wait(self, wish: Wish) -> bool:
        """Is somebody ahead of this new wish?"""
        if wish.purpose is Purpose.GROW:
            return any(other.purpose is Purpose.GROW for other in self._wishes.values())
        return bool(self._wishes)

    @property
    def waiting_pages(self) -> int:
        return sum(wish.page_count for wish in self._wishes.values())

    def next_deadline_s(self, now_s: float) -> float | None:
        """When the next wish's time to wait is over, of those whose is not yet."""
        return min((wish.deadline_s for wish in self._wishes.values() if wish.may_wait(now_s)), default=None)
