"""What a tenant was promised, and who may use it. Counts are pages of the pool."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from vatt.errors import InvalidRequest
from vatt.protocol import MAX_WEIGHT
from vatt.sizes import format_size


class MinMode(enum.Enum):
    """What becomes of the part of a min that its tenant does not use."""

    SOFT = "soft"  # lent to others, and asked back when its tenant wants it
    HARD = "hard"  # kept free, and backed with memory


@dataclass(frozen=True, slots=True)
class Guarantee:
    """Up to `min_pages` a tenant can have whatever others do, more than `max_pages` never (None: the whole pool).

    `weight` is its share of what is left beyond all mins, beside the other tenants'.
    """

    min_pages: int = 0
    max_pages: int | None = None
    weight: int = 1
    mode: MinMode = MinMode.SOFT

    def __post_init__(self) -> None:
        if self.min_pages < 0 or not 1 <= self.weight <= MAX_WEIGHT:
            raise InvalidRequest(f"not a guarantee: {self}")
        if self.max_pages is not None and not max(1, self.min_pages) <= self.max_pages:
            raise InvalidRequest(f"a max of {self.max_pages} pages is less than the min of {max(1, self.min_pages)}")

    @property
    def hard_pages(self) -> int:
        """The part that is kept free even when nobody uses it."""
        return self.min_pages if self.mode is MinMode.HARD else 0

    def words(self, page_size_bytes: int) -> str:
        """For people: `min 8.00 GiB soft, max 40.0 GiB, weight 2`."""
        least = f"{format_size(self.min_pages * page_size_bytes)} {self.mode.value}" if self.min_pages else "none"
        most = "none" if self.max_pages is None else format_size(self.max_pages * page_size_bytes)
        return f"min {least}, max {most}, weight {self.weight}"


NO_GUARANTEE = Guarantee()


@dataclass(frozen=True, slots=True)
class Access:
    """Users and groups that may use a tenant; a process may if its user, or any group of it, is listed."""

    uids: frozenset[int]
    gids: frozenset[int] = frozenset()

    def allows(self, uid: int, gids: Iterable[int]) -> bool:
        return uid in self.uids or not self.gids.isdisjoint(gids)

    def __str__(self) -> str:
        users = [f"uid {uid}" for uid in sorted(self.uids)]
        return ", ".join([*users, *(f"gid {gid}" for gid in sorted(self.gids))]) or "nobody"
