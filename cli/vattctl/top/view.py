"""What of a vattd somebody looks at: which table keys go to, how tables are sorted, how far they are scrolled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vattctl.top.table import Order

TENANTS = "tenants"
SESSIONS = "sessions"
_LARGEST_FIRST = Order("LEASED")


@dataclass(frozen=True, slots=True)
class View:
    """`tops` are the rows that tables begin with; `letters` stand in the map instead of colours.

    Curves need more points than one.
    """

    letters: bool
    curves: bool = True
    focus: str = TENANTS
    orders: Mapping[str, Order] = field(default_factory=lambda: dict.fromkeys((TENANTS, SESSIONS), _LARGEST_FIRST))
    tops: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys((TENANTS, SESSIONS), 0))
    is_paused: bool = False

    def with_other_table(self) -> View:
        return replace(self, focus=SESSIONS if self.focus == TENANTS else TENANTS)

    def with_order(self, order: Order) -> View:
        """From the first row on."""
        return replace(self, orders={**self.orders, self.focus: order}, tops={**self.tops, self.focus: 0})

    def scrolled(self, by: int, row_count: int, shown: int) -> View:
        top = max(0, min(self.tops[self.focus] + by, row_count - shown))
        return replace(self, tops={**self.tops, self.focus: top})
