"""Slots: which rows are in use, and how far each is filled and mapped."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from vatt.errors import InvalidRequest


@dataclass(slots=True)
class Slot:
    """A row in use. Every column of it has the same `mapped_pages`, from the row's start, without a hole."""

    token_count: int = 0
    mapped_pages: int = 0


class SlotTable:
    """Rows 0 to `slot_count` - 1. Invariant: each is either free or in use, and the lowest free one is dealt next."""

    def __init__(self, slot_count: int) -> None:
        self._free = list(range(slot_count))
        self._used: dict[int, Slot] = {}
        self._slot_count = slot_count

    def __len__(self) -> int:
        """Slots in use."""
        return len(self._used)

    def __iter__(self) -> Iterator[Slot]:
        """The slots in use."""
        return iter(self._used.values())

    def acquire(self) -> int:
        if not self._free:
            raise InvalidRequest(
                f"all {self._slot_count} slots are in use: free one, or ask for a larger max_batch_size"
            )
        number = heapq.heappop(self._free)
        self._used[number] = Slot()
        return number

    def release(self, number: int) -> None:
        self.use(number)
        del self._used[number]
        heapq.heappush(self._free, number)

    def use(self, number: int) -> Slot:
        """The slot in use under this number; raises InvalidRequest if there is none."""
        slot = self._used.get(number)
        if slot is None:
            raise InvalidRequest(f"slot {number!r} is not in use")
        return slot

    @property
    def numbers(self) -> list[int]:
        """Slots in use, lowest first."""
        return sorted(self._used)

    @property
    def token_count(self) -> int:
        return sum(slot.token_count for slot in self._used.values())

    @property
    def mapped_pages(self) -> int:
        """Of one column, over all slots."""
        return sum(slot.mapped_pages for slot in self._used.values())
