"""Slots: which rows are in use, how far each is filled, and how far it is mapped. No driver, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vatt.errors import InvalidRequest
from vattention.layout import Counts, RowArithmetic
from vattention.marks import Mark

if TYPE_CHECKING:
    from vattention.device_fence import Proof


class SlotTable:
    """Rows 0 to `slot_count` - 1, as arrays with one entry a row, so that a step costs the same for one row and many.

    A row that is not in use may keep its pages for the next request. Invariants: `capacity` is what `mapped` holds;
    `length` <= `capacity`; a free row has length 0; `shared` <= `mapped`. `mapped` and `shared` are counts of leading
    pages, per band.
    """

    def __init__(self, slot_count: int, band_count: int, arithmetic: RowArithmetic) -> None:
        self._arithmetic = arithmetic
        self.in_use: npt.NDArray[np.bool_] = np.zeros(slot_count, dtype=np.bool_)
        self.length: Counts = np.zeros(slot_count, dtype=np.int64)
        self.capacity: Counts = np.zeros(slot_count, dtype=np.int64)
        self.mapped: Counts = np.zeros((slot_count, band_count), dtype=np.int64)
        # Rows that have had a length from a step: a step without one ends their use.
        self.stepped: npt.NDArray[np.bool_] = np.zeros(slot_count, dtype=np.bool_)
        # Leading pages that may be another row's too: nobody writes to them, and no other request may take them over.
        self.shared: Counts = np.zeros((slot_count, band_count), dtype=np.int64)
        # Rows whose shared pages are for all to write (map_common): a length within them is nothing special.
        self.common: npt.NDArray[np.bool_] = np.zeros(slot_count, dtype=np.bool_)
        # Tokens that a row should have room for already: a request has announced them, or they are mapped ahead.
        self.expected: Counts = np.zeros(slot_count, dtype=np.int64)
        # Free rows whose pages another row may hold as well: unmapped before the row is used again.
        self.spoilt: npt.NDArray[np.bool_] = np.zeros(slot_count, dtype=np.bool_)
        # What the device may still use past a row's tokens; taking a row over changes nothing in that.
        self.marks: list[Mark] = [Mark(is_set=True) for _ in range(slot_count)]
        # When a free row was left.
        self.left_s: npt.NDArray[np.float64] = np.zeros(slot_count)

    def __len__(self) -> int:
        """Rows in use."""
        return int(self.in_use.sum())

    @property
    def slot_count(self) -> int:
        return len(self.length)

    def best_fit(self, token_count: int) -> int:
        """The free row that holds so many tokens with the least to spare; else the one that holds the most.

        Ties go to the lowest. A row that must be unmapped first counts as empty.
        """
        free = self._free()
        capacity = np.where(self.spoilt[free], 0, self.capacity[free])
        fits = capacity >= token_count
        if fits.any():
            return int(free[fits][capacity[fits].argmin()])
        return int(free[capacity.argmax()])

    def lowest_free(self) -> int:
        return int(self._free()[0])

    def barest_free(self) -> int:
        """The free row with the fewest pages."""
        free = self._free()
        return int(free[self.mapped[free].sum(axis=1).argmin()])

    def _free(self) -> npt.NDArray[np.intp]:
        free = np.flatnonzero(~self.in_use)
        if not len(free):
            raise InvalidRequest(
                f"all {self.slot_count} slots are in use: free one, or ask for a larger max_batch_size"
            )
        return free

    def claim(self, number: int, expected_tokens: int = 0) -> Mark:
        """Put a free row to use, empty. As long as the mark is the row's, nobody has ended this use."""
        self.in_use[number] = True
        self.stepped[number] = False
        self.length[number] = 0
        self.expected[number] = expected_tokens
        return self.marks[number]

    def is_claimed(self, number: int, mark: Mark) -> bool:
        """Is this still the use of the row that `claim` began? Asked before a request begins in it."""
        return bool(self.in_use[number]) and self.marks[number] is mark

    def leave(self, number: int, proof: Proof | None, now_s: float) -> None:
        """End the use of a row; its pages stay. `proof` covers that use; None: the cache's fence is yet to be asked."""
        mark = self.marks[number].after_use(proof)  # asks the device, and may raise
        self.in_use[number] = False
        self.length[number] = self.expected[number] = 0
        self.spoilt[number] = bool(self.shared[number].any())
        self.marks[number] = mark
        self.left_s[number] = now_s

    def check_used(self, number: Any) -> int:
        """`number` as the number of a row in use; raises InvalidRequest if it is none."""
        is_number = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
        if is_number and 0 <= number < self.slot_count and self.in_use[number]:
            return int(number)
        raise InvalidRequest(f"slot {number!r} is not in use")

    def set_mapped(self, rows: int | Sequence[int] | npt.NDArray[Any], mapped: Counts) -> None:
        """Note how far rows are mapped now."""
        self.mapped[rows] = mapped
        self.capacity[rows] = self._arithmetic.capacity(mapped)
        self.shared[rows] = np.minimum(self.shared[rows], mapped)

    @property
    def used(self) -> list[int]:
        """Rows in use, lowest first."""
        return [int(number) for number in np.flatnonzero(self.in_use)]

    @property
    def token_count(self) -> int:
        return int(self.length.sum())
