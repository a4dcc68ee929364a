"""How far ahead of the tokens to map: as late as the mapping rate allows, since a page mapped early is a page idle."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vattention.layout import Counts

# Never less: a step may come while the background is being scheduled.
MIN_STEPS_AHEAD = 2
MAX_STEPS_AHEAD = 32
# The part of the time between steps that mapping may be counted on to have: the rest is the engine's, and luck's.
MAPPING_SHARE = 0.5
# How much the latest measurement counts.
_WEIGHT = 0.2


class Pace:
    """How long a page takes to be mapped, leasing included, and how often the engine steps: averages that forget."""

    def __init__(self) -> None:
        # Until something has been measured: a slow driver and a fast model.
        self.page_s = 40e-6
        self.step_s = 5e-3
        self._last_step_s: float | None = None

    def note_mapping(self, page_count: int, duration_s: float) -> None:
        self.page_s += _WEIGHT * (duration_s / page_count - self.page_s)

    def note_step(self, now_s: float) -> None:
        # A pause between requests says nothing about the pace within them.
        if self._last_step_s is not None:
            self.step_s += _WEIGHT * (min(now_s - self._last_step_s, 4 * self.step_s) - self.step_s)
        self._last_step_s = now_s


def steps_ahead(missing_pages: Counts, pace: Pace) -> int:
    """The fewest steps to map for now, given the pages that rows lack if each grows by 0, 1, 2, ... more tokens.

    What is due after those must fit into the time until then: for every later step h', the pages between are mapped
    in no more than `MAPPING_SHARE` of the steps between. Many rows that cross a page together are so begun early
    enough, and a lone one is left until it is nearly due.
    """
    enough = _keeps_up(missing_pages, pace)
    enough[:MIN_STEPS_AHEAD] = False
    return int(enough.argmax())


def spare_steps(missing_pages: Counts, pace: Pace) -> int:
    """In how many steps to look again, if by then each row has grown by a token a step and nothing has been mapped."""
    late = (missing_pages > 0) | ~_keeps_up(missing_pages, pace)
    late[-1] = True  # nobody has looked further
    return max(0, int(late[MIN_STEPS_AHEAD:].argmax()) - 1)


def _keeps_up(missing_pages: Counts, pace: Pace) -> npt.NDArray[np.bool_]:
    """For each number of steps: with those mapped for, will mapping keep up with the steps after them?"""
    steps = np.arange(len(missing_pages))
    backlog_s = missing_pages * pace.page_s - steps * (pace.step_s * MAPPING_SHARE)
    worst_later_s = np.maximum.accumulate(backlog_s[::-1])[::-1]
    keeps_up: npt.NDArray[np.bool_] = backlog_s >= worst_later_s
    return keeps_up
