"""Several tenants in half of what they would use together: who waits how long, by what was promised to whom."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from benchmarks.tenancy.replay import Outcome, replay
from benchmarks.tenancy.sizing import Mix, first_come, vattd
from benchmarks.tenancy.workload import LONG_CONTEXT, Workload, peak_pages
from vattd.guarantee import NO_GUARANTEE, Guarantee

# Of what is used at most where nobody ever waits.
SQUEEZED_PART = 0.5
# Of the pool, where the tenant with long contexts has a min.
LONG_MIN_PART = 0.5


class Rule(enum.Enum):
    """Which pool, and soft mins for whom; the values are for people."""

    FIRST_COME = "first come"
    NO_MIN = "vattd: no min"
    LONG_MIN = "vattd: min for long"
    OTHERS_MIN = "vattd: mins for others"

    def guarantees(self, workloads: list[Workload], capacity_pages: int) -> list[Guarantee]:
        return [self._guarantee(workload, capacity_pages) for workload in workloads]

    def _guarantee(self, workload: Workload, capacity_pages: int) -> Guarantee:
        is_long = workload.name in LONG_CONTEXT
        if self is Rule.LONG_MIN and is_long:
            return Guarantee(min_pages=int(capacity_pages * LONG_MIN_PART))
        if self is Rule.OTHERS_MIN and not is_long:
            return Guarantee(min_pages=int(workload.demand_pages().mean()))
        return NO_GUARANTEE


@dataclass(frozen=True, slots=True, eq=False)
class Squeezed:
    capacity_pages: int
    largest_pages: int  # of all requests
    guarantees: list[Guarantee]
    outcomes: list[Outcome]


def squeeze(mix: Mix, rule: Rule) -> Squeezed:
    workloads = mix.workloads()
    largest_pages = max(workload.largest_pages for workload in workloads)
    capacity_pages = max(int(peak_pages(workloads) * SQUEEZED_PART), largest_pages)
    guarantees = rule.guarantees(workloads, capacity_pages)
    make_pool = first_come(capacity_pages) if rule is Rule.FIRST_COME else vattd(capacity_pages)
    return Squeezed(capacity_pages, largest_pages, guarantees, replay(workloads, make_pool, guarantees))
