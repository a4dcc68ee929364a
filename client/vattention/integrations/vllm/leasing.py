"""Asking vattd for the memory that a request lacks, in the middle of scheduling a step."""

from __future__ import annotations

import logging
import time

from vattention.integrations.vllm.admission_queue import AdmissionQueue
from vattention.integrations.vllm.budget import Budget
from vattention.integrations.vllm.ranks import Ranks
from vattention.page_source import LeasePurpose

log = logging.getLogger(__name__)

# After vattd refused a new request, steps leave it alone for so long: the admission queue waits there meanwhile.
REFUSED_REST_S = 0.1
# How often it is said that requests wait for memory.
SAY_EVERY_S = 10.0


class Leasing:
    """What is leased goes into the budget; all of it is called with the scheduler's lock held.

    vattd is asked once a step for running requests, since a refusal holds for the others as well, and for a new one
    not again at once: it waits in the queue.
    """

    def __init__(self, budget: Budget, ranks: Ranks, queue: AdmissionQueue) -> None:
        self._budget = budget
        self._ranks = ranks
        self._queue = queue
        self._refused_at_step = -1
        self._ask_after_s = self._say_after_s = float("-inf")

    def for_running(self, block_count: int, step: int) -> bool:
        """Lease what a running request lacks, so many blocks; did it come?"""
        page_count = self._budget.pages_for(block_count)
        if not page_count or self._refused_at_step == step:
            return False
        if self._lease(page_count, LeasePurpose.GROW):
            return True
        self._refused_at_step = step
        return False

    def for_new(self, block_count: int) -> bool:
        """Lease what a request lacks that is to begin, or to be resumed; did it come? If not, it queues."""
        page_count = self._budget.pages_for(block_count)
        if not page_count:  # there are not so many blocks: memory would not help
            self._queue.forget()
            return False
        if time.monotonic() >= self._ask_after_s:
            if self._lease(page_count, LeasePurpose.ADMIT):
                return True
            self._ask_after_s = time.monotonic() + REFUSED_REST_S
        self._queue.wish(page_count)
        return False

    def _lease(self, page_count: int, purpose: LeasePurpose) -> bool:
        granted = self._ranks.lease(page_count, page_count, purpose)
        self._budget.lend(granted.page_count)
        if not granted.page_count and time.monotonic() >= self._say_after_s:
            self._say_after_s = time.monotonic() + SAY_EVERY_S
            log.warning("vattd: requests wait for memory or are preempted: %s", granted.refusal)
        return granted.page_count > 0
