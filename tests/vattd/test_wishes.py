"""Wishes in their queues: each is found, each deadline is seen once, and others cost nothing."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vattd.guarantee import NO_GUARANTEE, Guarantee
from vattd.wish import Purpose, Waiting, Wish
from vattd.wishes import SWEEP_AFTER, Wishes


@dataclass
class Tenant:
    name: str
    guarantee: Guarantee = NO_GUARANTEE
    held_pages: int = 0


TENANTS = [Tenant("a"), Tenant("b")]


def waiting(number: int, tenant: Tenant, *, page_count: int = 1, deadline_s: float = 100.0) -> Waiting:
    wish = Wish(f"s{number % 3}", f"r{number}", page_count, page_count, Purpose.ADMIT, deadline_s)
    return Waiting(wish, tenant, 0.0, number)


class WishesMachine(RuleBasedStateMachine):
    """Against lists."""

    def __init__(self) -> None:
        super().__init__()
        self.wishes, self.now_s, self.count = Wishes(), 0.0, 0
        self.queues: dict[str, list[Waiting]] = {tenant.name: [] for tenant in TENANTS}
        self.awarded: list[Waiting] = []

    @rule(tenant=st.sampled_from(TENANTS), pages=st.integers(1, 9), wait_s=st.sampled_from([0.0, 1.0, 50.0]))
    def queue(self, tenant: Tenant, pages: int, wait_s: float) -> None:
        self.count += 1
        entry = waiting(self.count, tenant, page_count=pages, deadline_s=self.now_s + wait_s)
        self.wishes.queue(entry)
        self.queues[tenant.name].append(entry)

    @rule(tenant=st.sampled_from(TENANTS), at=st.integers(0, 3), is_new=st.booleans())
    def award(self, tenant: Tenant, at: int, is_new: bool) -> None:
        queue = self.queues[tenant.name]
        if is_new:
            self.count += 1
            entry = waiting(self.count, tenant)
        elif at < len(queue):
            entry = queue.pop(at)
        else:
            return
        self.wishes.award(entry, 1)
        self.awarded.append(entry)

    @rule(at=st.integers(0, 3))
    def postpone(self, at: int) -> None:
        if at < len(self.awarded):
            entry = self.awarded.pop(at)
            self.wishes.postpone(entry)
            self.queues[entry.party.name].insert(0, entry)

    @rule(at=st.integers(0, 9))
    def remove(self, at: int) -> None:
        if at < len(self.all):
            self._remove(self.all[at])

    @rule(seconds=st.sampled_from([0.5, 2.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        expected = [entry for queue in self.queues.values() for entry in queue if entry.wish.deadline_s <= self.now_s]
        found = self.wishes.overdue(self.now_s)
        assert sorted(entry.number for entry in found) == sorted(entry.number for entry in expected)
        for entry in found:
            self._remove(entry)

    @property
    def all(self) -> list[Waiting]:
        return [*self.awarded, *(entry for queue in self.queues.values() for entry in queue)]

    def _remove(self, entry: Waiting) -> None:
        self.wishes.remove(entry)
        (self.awarded if entry in self.awarded else self.queues[entry.party.name]).remove(entry)

    @invariant()
    def all_is_as_the_lists_say(self) -> None:
        wishes = self.wishes
        assert wishes.awarded == self.awarded
        for tenant in TENANTS:
            queue = self.queues[tenant.name]
            assert list(wishes.queue_of(tenant)) == queue
            assert wishes.queue_length(tenant) == len(queue)
            assert wishes.head_of(tenant) is (queue[0] if queue else None)
            assert wishes.queued_pages(tenant) == sum(entry.wish.page_count for entry in queue)
            assert wishes.awarded_pages(tenant) == sum(entry.party is tenant for entry in self.awarded)
            assert wishes.count_of_tenant(tenant) == sum(entry.party is tenant for entry in self.all)
        assert wishes.all_pages == sum(entry.wish.page_count for entry in self.all)
        assert wishes.all_awarded_pages == len(self.awarded)
        assert sorted(entry.number for entry in wishes) == sorted(entry.number for entry in self.all)
        assert all(wishes.find(entry.wish.key) is entry for entry in self.all)
        queued = [entry.wish.deadline_s for queue in self.queues.values() for entry in queue]
        assert wishes.next_deadline_s() == min(queued, default=None)


TestWishesMachine = WishesMachine.TestCase


def test_a_wish_is_taken_in_once() -> None:
    wishes, entry = Wishes(), waiting(1, TENANTS[0])
    wishes.queue(entry)
    with pytest.raises(ValueError, match="waits already"):
        wishes.queue(waiting(1, TENANTS[0]))
    assert list(wishes) == [entry]


def test_deadlines_of_wishes_that_were_served_long_before_do_not_pile_up() -> None:
    wishes = Wishes()
    for number in range(10 * SWEEP_AFTER):
        entry = waiting(number, TENANTS[0], deadline_s=3600.0)
        wishes.queue(entry)
        wishes.award(entry, 1)
        wishes.remove(entry)
    assert len(wishes._deadlines) <= 2 * SWEEP_AFTER
