"""How fast tenants lease, by the difference of two answers: vattd only counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from vatt.v1 import vatt_pb2 as pb
from vattctl.top.reading import Reading


@dataclass(frozen=True, slots=True)
class Counts:
    """Of a tenant since its vattd started, or by how much they rose."""

    leases: int = 0
    leased_bytes: int = 0
    refusals: int = 0
    waits: int = 0
    waited_s: float = 0.0

    @classmethod
    def of(cls, tenant: pb.Tenant) -> Counts:
        return cls(
            tenant.granted_leases_total,
            tenant.granted_bytes_total,
            tenant.refused_leases_total,
            tenant.waited_total,
            tenant.waited_time_total.ToNanoseconds() / 1e9,
        )

    def since(self, before: Counts) -> Counts:
        """A tenant that vattd had forgotten counts from 0 again."""
        risen = [getattr(self, one.name) - getattr(before, one.name) for one in fields(Counts)]
        return self if min(risen) < 0 else Counts(*risen)


@dataclass(frozen=True, slots=True)
class Rates:
    """Of a tenant, or of all, between two answers."""

    leases_per_s: float
    bytes_per_s: float
    refusals_per_s: float
    # How long a lease waits: those that waited and were granted, on average; or the one that waits longest now.
    wait_s: float


def rates(before: Reading, after: Reading) -> tuple[Rates, Mapping[str, Rates]] | None:
    """Of all, and by tenant; None if there is nothing to compare: another vattd answered before."""
    over_s = after.at_s - before.at_s
    if over_s <= 0 or before.status.daemon.incarnation != after.status.daemon.incarnation:
        return None
    was = {tenant.name: Counts.of(tenant) for tenant in before.status.tenants}
    risen = {one.name: Counts.of(one).since(was.get(one.name, Counts())) for one in after.status.tenants}
    waits_s = {one.name: one.longest_wait.ToNanoseconds() / 1e9 for one in after.status.tenants}
    by_tenant = {name: _rates(counts, waits_s[name], over_s) for name, counts in risen.items()}
    return _rates(_sum(risen.values()), max(waits_s.values(), default=0.0), over_s), by_tenant


def _rates(risen: Counts, longest_s: float, over_s: float) -> Rates:
    mean_s = risen.waited_s / risen.waits if risen.waits else 0.0
    return Rates(risen.leases / over_s, risen.leased_bytes / over_s, risen.refusals / over_s, max(mean_s, longest_s))


def _sum(counts: Iterable[Counts]) -> Counts:
    total = Counts()
    for one in counts:
        total = Counts(*(getattr(total, field.name) + getattr(one, field.name) for field in fields(Counts)))
    return total
