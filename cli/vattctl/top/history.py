"""The last answers of one vattd, as figures and curves need them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from vattctl.top.marks import seats
from vattctl.top.rates import Rates, rates
from vattctl.top.reading import Reading

# As wide as a curve may get.
KEPT_POINTS = 240

Points = deque[Rates | None]


class History:
    """Grows by one point an answer; None is a point that nobody measured: the first, or while vattd did not answer.

    Every curve ends with the latest answer, and none outlives its tenant.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._all: Points = deque(maxlen=KEPT_POINTS)
        self._by_tenant: dict[str, Points] = {}
        self.latest: Reading | None = None
        self.seats: Mapping[str, int] = {}

    def add(self, reading: Reading) -> None:
        before, self.latest = self.latest, reading
        measured = rates(before, reading) if before is not None else None
        gap = 0 if before is None else self._missed(reading.at_s - before.at_s)
        names = [tenant.name for tenant in reading.status.tenants]
        self.seats = seats(self.seats, names)
        _extend(self._all, gap, measured[0] if measured else None)
        known, self._by_tenant = self._by_tenant, {}
        for name in names:
            points = known.get(name) or deque(maxlen=KEPT_POINTS)
            _extend(points, gap, measured[1][name] if measured else None)
            self._by_tenant[name] = points

    def rates(self, tenant: str | None = None) -> Rates | None:
        """The latest; of all without a tenant."""
        points = self._points(tenant)
        return points[-1] if points else None

    def leases(self, tenant: str | None = None) -> Sequence[float | None]:
        return [point.leases_per_s if point else None for point in self._points(tenant)]

    def waits(self, tenant: str | None = None) -> Sequence[float | None]:
        return [point.wait_s if point else None for point in self._points(tenant)]

    def _points(self, tenant: str | None) -> Points:
        return self._all if tenant is None else self._by_tenant.get(tenant, deque())

    def _missed(self, since_s: float) -> int:
        """Points between two answers, so that curves keep their time."""
        return min(KEPT_POINTS, max(0, round(since_s / self._interval_s) - 1))


def _extend(points: Points, gap: int, point: Rates | None) -> None:
    unmeasured: Iterable[None] = [None] * gap
    points.extend(unmeasured)
    points.append(point)
