"""What was set for a tenant, in bytes as it was said, and whether all of it together fits the pool.

Pure, but for the parsing of what a file says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vatt.errors import InvalidRequest, Overcommitted
from vatt.names import check_tenant_name
from vatt.protocol import MAX_WEIGHT
from vatt.sizes import format_size
from vattd.guarantee import Access, Guarantee, MinMode

# What a file says must fit the wire.
_PAST_ALL = 1 << 62
_LATEST_S = 253_402_300_799.0  # the end of the year 9999, as of a Timestamp


@dataclass(frozen=True, slots=True)
class Reservation:
    """A tenant's guarantee in bytes, who may use it, and until when it holds (wall-clock seconds; None: for good)."""

    access: Access
    min_bytes: int = 0
    max_bytes: int | None = None
    weight: int = 1
    mode: MinMode = MinMode.SOFT
    until_s: float | None = None
    revision: int = 0

    def __post_init__(self) -> None:
        if self.min_bytes < 0:
            raise InvalidRequest(f"a min is at least 0 bytes, not {self.min_bytes}")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise InvalidRequest(f"a max is at least 1 byte, not {self.max_bytes}")
        if self.max_bytes is not None and self.min_bytes > self.max_bytes:
            raise InvalidRequest(
                f"the min of {format_size(self.min_bytes)} is more than the max of {format_size(self.max_bytes)}: "
                "lower the one or raise the other"
            )
        if not 1 <= self.weight <= MAX_WEIGHT:
            raise InvalidRequest(f"a weight is 1 to {MAX_WEIGHT}, not {self.weight}")
        if not self.access.uids and not self.access.gids:
            raise InvalidRequest("nobody may use the tenant: allow a user (1000, alice) or a group (@staff)")

    def guarantee(self, page_size_bytes: int) -> Guarantee:
        """In whole pages: a min is rounded up, a max down. Raises InvalidRequest for a max of less than a page."""
        min_pages = -(-self.min_bytes // page_size_bytes)
        if self.max_bytes is None:
            return Guarantee(min_pages, None, self.weight, self.mode)
        max_pages = self.max_bytes // page_size_bytes
        if max_pages < 1:
            raise InvalidRequest(
                f"a max of {format_size(self.max_bytes)} is less than a page of {format_size(page_size_bytes)}"
            )
        return Guarantee(min_pages, max(min_pages, max_pages), self.weight, self.mode)

    def to_plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "min_bytes": self.min_bytes,
            "max_bytes": self.max_bytes,
            "weight": self.weight,
            "mode": self.mode.value,
            "uids": sorted(self.access.uids),
            "gids": sorted(self.access.gids),
            "until_s": self.until_s,
            "revision": self.revision,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Reservation:
        """The inverse. Raises ValueError, TypeError or KeyError for anything else."""
        fields = dict(plain)
        access = Access(_ids(fields.pop("uids")), _ids(fields.pop("gids")))
        reservation = cls(access=access, mode=MinMode(fields.pop("mode")), **fields)
        max_bytes = reservation.max_bytes or 0
        numbers = (reservation.min_bytes, max_bytes, reservation.weight, reservation.revision)
        if any(type(number) is not int or not 0 <= number < _PAST_ALL for number in numbers):
            raise TypeError(f"not whole numbers: {numbers}")
        until_s = reservation.until_s
        if until_s is not None and (type(until_s) not in (int, float) or not 0 <= until_s <= _LATEST_S):
            raise TypeError(f"not a time: {until_s}")
        return reservation


def check_all(reservations: Mapping[str, Reservation], page_size_bytes: int, pool_bytes: int) -> None:
    """Raises InvalidRequest for what no tenant can have, Overcommitted if the mins do not fit the pool together."""
    promised = 0
    for name, reservation in reservations.items():
        check_tenant_name(name)
        promised += reservation.guarantee(page_size_bytes).min_pages * page_size_bytes
    if promised > pool_bytes:
        largest = sorted(reservations.items(), key=lambda item: -item[1].min_bytes)
        mins = ", ".join(f"{name} {format_size(one.min_bytes)}" for name, one in largest[:5] if one.min_bytes)
        more = f" and {len(largest) - 5} more" if len(largest) > 5 else ""
        raise Overcommitted(
            f"the mins would be {format_size(promised)} together ({mins}{more}), and the pool has "
            f"{format_size(pool_bytes)}: {format_size(promised - pool_bytes)} too much"
        )


def _ids(numbers: Any) -> frozenset[int]:
    if not isinstance(numbers, list) or any(type(number) is not int or not 0 <= number < 1 << 32 for number in numbers):
        raise TypeError(f"not a list of ids: {numbers!r}")
    return frozenset(numbers)
