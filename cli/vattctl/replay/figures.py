"""What came out of a replay."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vattctl.replay.batching import Batch, Step

Series = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SchemeFigures:
    """One way to hold KV, at the budget. Averages are over virtual time, until the last request was admitted."""

    name: str
    running_mean: float
    running_max: int
    waste_fraction: float  # of the bytes behind running requests, those that no token fills
    preemption_count: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class MapFigures:
    """What the library did, in pages of the model's size, over the whole replay."""

    needed_pages: int  # by all requests, from first to last: what mapping anew for each would map
    mapped_pages: int
    unmapped_pages: int
    unmapped_on_request_path_pages: int  # a step waited for it: nothing was free any more
    most_held_over_need_pages: int
    most_kernel_mappings: int
    pool_pages: int

    @property
    def avoided_fraction(self) -> float:
        """Of the pages that requests needed, those that they found mapped."""
        return 1 - self.mapped_pages / self.needed_pages

    @property
    def most_held_over_need_fraction(self) -> float:
        return self.most_held_over_need_pages / self.pool_pages


@dataclass(frozen=True, slots=True)
class Timeline:
    """Bytes at each step of vattention's run; `others` would hold those of the same requests."""

    time_s: Series
    token_bytes: Series
    running_bytes: Series
    kept_bytes: Series
    others: dict[str, Series]

    def thinned(self, point_count: int) -> Timeline:
        """Averages of neighbours, about so many."""
        width = max(1, len(self.time_s) // point_count)
        starts = np.arange(0, len(self.time_s), width)
        sizes = np.diff(np.append(starts, len(self.time_s)))

        def average(series: Series) -> Series:
            means: Series = np.add.reduceat(series, starts) / sizes
            return means

        return Timeline(
            average(self.time_s),
            average(self.token_bytes),
            average(self.running_bytes),
            average(self.kept_bytes),
            {name: average(series) for name, series in self.others.items()},
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """All of a replay. `schemes` has vattention first; `too_small` those that cannot hold the largest request."""

    schemes: list[SchemeFigures]
    too_small: list[str]
    maps: MapFigures
    timeline: Timeline


@dataclass(slots=True)
class Meter:
    """Notes every step of one batch, and averages those before the last request was admitted.

    Where all requests are admitted in the first step, there is nothing before it: then it is all of them.
    """

    rows: list[tuple[int, int, int, int]] = field(default_factory=list)
    steps_that_count: int = 0

    def note(self, batch: Batch, step: Step, token_bytes: int, held_bytes: int) -> None:
        self.rows.append((step.step_count, step.running, token_bytes, held_bytes))
        if not batch.all_admitted:
            self.steps_that_count = len(self.rows)

    def figures(self, name: str, batch: Batch, step_s: float) -> SchemeFigures:
        counted = np.array(self.rows[: self.steps_that_count or None], dtype=np.float64)
        step_count, running, token_bytes, held_bytes = counted.T
        held_sum = float((held_bytes * step_count).sum())
        return SchemeFigures(
            name,
            running_mean=float((running * step_count).sum() / step_count.sum()),
            running_max=max(row[1] for row in self.rows),
            waste_fraction=1 - float((token_bytes * step_count).sum()) / held_sum if held_sum else 0.0,
            preemption_count=batch.preemptions,
            duration_s=batch.steps * step_s,
        )
