"""Waiting for the memory of the request that is to be admitted next."""

from __future__ import annotations

import threading
import time

from vattention.integrations.vllm.background import Background
from vattention.integrations.vllm.budget import Budget
from vattention.integrations.vllm.ranks import Ranks
from vattention.page_source import LeasePurpose

# How long a lease stays in vattd's queue before it is asked for anew, at its new size.
QUEUE_S = 1.0
# After a refusal at once, which would come at once again.
REFUSED_REST_S = 0.25
# A wish that no scheduling step repeats is over, and so is a grant that none takes; a step may take seconds.
WISH_LASTS_S = 10.0


class AdmissionQueue:
    """A scheduler must not stand still while one request waits for memory, and vattd gathers memory for those who wait
    in its queue: so this waits there, and the scheduler finds what came in its budget.

    `changed` is a condition of the scheduler's lock, notified when pages came. `ranks` are its own, and closed by it.
    """

    def __init__(self, budget: Budget, changed: threading.Condition, ranks: Ranks) -> None:
        self._budget = budget
        self._changed = changed
        self._ranks = ranks
        self._wish_pages = 0
        self._wish_ends_s = float("-inf")
        self._is_granted = False
        self._background = Background("vattd-vllm-queue", self._wait_in_line, at_end=ranks.close)
        self._background.start()

    @property
    def is_waiting(self) -> bool:
        """Does a request wait for pages, or have they come since the last step? Called with the lock held."""
        return self._wish_pages > 0 and time.monotonic() < self._wish_ends_s

    def wish(self, page_count: int) -> None:
        """A request lacks so many pages, as of this step. Called with the lock held."""
        self._wish_pages, self._is_granted = page_count, False
        self._wish_ends_s = time.monotonic() + WISH_LASTS_S
        self._changed.notify_all()

    def forget(self) -> None:
        """It has them, or is gone. Called with the lock held."""
        self._wish_pages = 0

    def close(self) -> None:
        self._background.stop()
        with self._changed:
            self._changed.notify_all()

    def _wait_in_line(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._background.is_stopped or (self.is_waiting and not self._is_granted))
            page_count = self._wish_pages
        if self._background.is_stopped:
            return
        granted = self._ranks.lease(page_count, page_count, LeasePurpose.ADMIT, QUEUE_S)
        with self._changed:
            if granted.page_count:
                self._is_granted = True
                self._budget.lend(granted.page_count)
                self._changed.notify_all()
            else:
                self._changed.wait_for(lambda: self._background.is_stopped, REFUSED_REST_S)
