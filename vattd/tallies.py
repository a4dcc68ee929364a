"""What is counted of leases: how many, how large, how long they took, and what others were refused with.

Pure: times are arguments. Counts only ever rise, and those of a tenant end with it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from vattd.wish import Purpose

# Seconds: from a lease that finds its pages ready, some microseconds, to one that queues. A percentile is no finer than
# these: with none between 5 and 30, waits of at most ten seconds were shown as thirty.
BOUNDS_S = (
    *(5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)


@dataclass(slots=True)
class Histogram:
    """Times. `counts[i]` of them were at most `BOUNDS_S[i]` and more than the bound before it; the last were longer."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    total_s: float = 0.0

    def note(self, time_s: float) -> None:
        self.counts[bisect_left(BOUNDS_S, time_s)] += 1
        self.total_s += time_s

    def copy(self) -> Histogram:
        return Histogram(list(self.counts), self.total_s)


@dataclass(slots=True)
class TenantTally:
    """Of one tenant's leases. `waited` are those granted that were not granted at once, `waited_s` how long they took;
    `admit_wait` has every ADMIT that was granted, those granted at once too."""

    granted: int = 0
    granted_pages: int = 0
    waited: int = 0
    waited_s: float = 0.0
    refusals: Counter[str] = field(default_factory=Counter)  # by reason, as in vatt.errors
    admit_wait: Histogram = field(default_factory=Histogram)

    def grant(self, purpose: Purpose, page_count: int, waited_s: float) -> None:
        self.granted += 1
        self.granted_pages += page_count
        if waited_s > 0:
            self.waited += 1
            self.waited_s += waited_s
        if purpose is Purpose.ADMIT:
            self.admit_wait.note(waited_s)

    def copy(self) -> TenantTally:
        return TenantTally(
            self.granted,
            self.granted_pages,
            self.waited,
            self.waited_s,
            Counter(self.refusals),
            self.admit_wait.copy(),
        )


@dataclass(slots=True)
class PurposeTally:
    """Of all leases of one purpose that were granted: how many pages, and how long each took inside vattd."""

    granted_pages: int = 0
    duration: Histogram = field(default_factory=Histogram)

    def grant(self, page_count: int, took_s: float) -> None:
        self.granted_pages += page_count
        self.duration.note(took_s)

    def copy(self) -> PurposeTally:
        return PurposeTally(self.granted_pages, self.duration.copy())
