"""Many measurements of one thing, as a few numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """Times of one thing in microseconds. Percentiles are times that were measured, never between two."""

    count: int
    least_us: float
    p10_us: float
    median_us: float
    p90_us: float
    p99_us: float
    most_us: float
    mean_us: float
    first_half_median_us: float
    second_half_median_us: float

    @classmethod
    def of_ns(cls, times_ns: Sequence[int]) -> Summary:
        """In the order in which they were measured; at least one."""
        if not times_ns:
            raise ValueError("nothing was measured")
        half = max(1, len(times_ns) // 2)
        ordered = sorted(times_ns)
        return cls(
            count=len(ordered),
            least_us=ordered[0] / 1e3,
            p10_us=_rank(ordered, 0.10),
            median_us=_rank(ordered, 0.50),
            p90_us=_rank(ordered, 0.90),
            p99_us=_rank(ordered, 0.99),
            most_us=ordered[-1] / 1e3,
            mean_us=statistics.fmean(ordered) / 1e3,
            first_half_median_us=_rank(sorted(times_ns[:half]), 0.50),
            second_half_median_us=_rank(sorted(times_ns[-half:]), 0.50),
        )

    @property
    def drift(self) -> float:
        """How far apart the medians of the two halves are, as a part of the whole one's: the noise to reckon with."""
        apart_us = abs(self.first_half_median_us - self.second_half_median_us)
        return apart_us / self.median_us if self.median_us else 0.0


def _rank(ordered_ns: Sequence[int], part: float) -> float:
    """The least measured time that this part of them does not pass."""
    return ordered_ns[math.ceil(part * len(ordered_ns)) - 1] / 1e3
