"""Waiting in vattd's queue beside a scheduler, with ranks that grant all that is asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from vattention.block_geometry import BlockGeometry, Stripe
from vattention.integrations.vllm.admission_queue import AdmissionQueue
from vattention.integrations.vllm.budget import Budget
from vattention.integrations.vllm.messages import Granted
from vattention.integrations.vllm.ranks import Ranks
from vattention.page_source import LeasePurpose

PAGE = 64 << 10
WITHIN_S = 10.0


class GenerousRanks(Ranks):
    def __init__(self) -> None:
        super().__init__([])
        self.leases: list[int] = []
        self.is_closed = threading.Event()

    def lease(self, page_count: int, least_pages: int, purpose: LeasePurpose, wait_s: float = 0.0) -> Granted:
        self.leases.append(page_count)
        return Granted(page_count)

    def close(self) -> None:
        self.is_closed.set()


@pytest.fixture
def ranks() -> GenerousRanks:
    return GenerousRanks()


@pytest.fixture
def changed() -> threading.Condition:
    return threading.Condition(threading.RLock())


@pytest.fixture
def budget() -> Budget:
    return Budget(BlockGeometry(8, (Stripe(0, PAGE, PAGE),), PAGE), credit_pages=1)


@pytest.fixture
def queue(budget: Budget, changed: threading.Condition, ranks: GenerousRanks) -> Iterator[AdmissionQueue]:
    queue = AdmissionQueue(budget, changed, ranks)
    yield queue
    queue.close()
    assert ranks.is_closed.wait(WITHIN_S)


def test_what_came_is_kept_for_the_step_that_it_is_for_and_asked_for_once(
    queue: AdmissionQueue, budget: Budget, changed: threading.Condition, ranks: GenerousRanks
) -> None:
    with changed:
        assert not queue.is_waiting
        queue.wish(3)
        assert changed.wait_for(lambda: budget.credit_pages == 4, WITHIN_S)
        assert queue.is_waiting  # else the upkeep would give it back during a long step
    with changed:
        queue.wish(2)
        assert changed.wait_for(lambda: budget.credit_pages == 6, WITHIN_S)
        queue.forget()
        assert not queue.is_waiting
    assert ranks.leases == [3, 2]
