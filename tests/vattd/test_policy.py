"""Who may lease, who waits and for how long: the policy by itself, and a soak of it in virtual time."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from tests.vattd.policy_world import World, begin, random_setting, step
from vatt.errors import InvalidRequest, LimitExceeded, PoolExhausted, VattError, WaitHopeless
from vattd.guarantee import Access, Guarantee, MinMode
from vattd.policy import CLAIM_S, Policy
from vattd.wish import Purpose, Timing, Waiting, Wish

NOW_S = 100.0


@dataclass(eq=False)
class Tenant:
    name: str
    guarantee: Guarantee = field(default_factory=Guarantee)
    held_pages: int = 0


class Books:
    """A pool whose pages are all ready."""

    def __init__(self, capacity_pages: int, *tenants: Tenant) -> None:
        self.capacity_pages = self.limit_pages = capacity_pages
        self.tenants = tenants

    @property
    def lent_pages(self) -> int:
        return sum(tenant.held_pages for tenant in self.tenants)

    @property
    def promised_pages(self) -> int:
        return sum(tenant.guarantee.min_pages for tenant in self.tenants)

    def promised(self) -> list[Tenant]:
        return [tenant for tenant in self.tenants if tenant.guarantee.min_pages]

    def holding(self) -> list[Tenant]:
        return [tenant for tenant in self.tenants if tenant.held_pages]


class Desk:
    """A policy, and who was granted what."""

    def __init__(self, capacity_pages: int, *tenants: Tenant, timing: Timing | None = None) -> None:
        self.books = Books(capacity_pages, *tenants)
        self.policy = Policy(self.books, timing or Timing())
        self._numbers = itertools.count()

    def admit(
        self, tenant: Tenant, page_count: int, now_s: float, *, wait_s: float = 1000.0, fewest: int | None = None
    ) -> Waiting:
        return self._add(tenant, page_count, fewest or page_count, Purpose.ADMIT, now_s, now_s + wait_s)

    def grow(self, tenant: Tenant, page_count: int, now_s: float, *, fewest: int | None = None) -> Waiting:
        return self._add(tenant, page_count, fewest or page_count, Purpose.GROW, now_s, now_s)

    def serve(self, now_s: float) -> tuple[list[Waiting], list[tuple[Waiting, VattError]]]:
        """Grant all that is awarded. Returns it, and what was refused."""
        refused = []
        while overdue := self.policy.award(now_s):
            refused += overdue
            for entry, _ in overdue:
                self.policy.remove(entry)
        granted = self.policy.wishes.awarded
        for entry in granted:
            self.policy.remove(entry)
            party = entry.party
            assert isinstance(party, Tenant)
            party.held_pages += entry.awarded_pages
        return granted, refused

    def granted(self, now_s: float) -> list[tuple[str, int]]:
        return [(entry.party.name, entry.awarded_pages) for entry in self.serve(now_s)[0]]

    def want_ahead(self, tenant: Tenant, page_count: int, now_s: float) -> Waiting:
        return self._add(tenant, page_count, 1, Purpose.AHEAD, now_s, now_s)

    def _add(
        self, tenant: Tenant, page_count: int, fewest: int, purpose: Purpose, now_s: float, deadline_s: float
    ) -> Waiting:
        request_id = f"r{next(self._numbers)}"
        return self.policy.add(Wish("s", request_id, page_count, fewest, purpose, deadline_s), tenant, now_s)


# The soak


def test_soak_of_the_policy(pytestconfig: pytest.Config) -> None:
    """`--policy-steps` random steps, a new world every 400 of them; it names the world in which something fails."""
    only_seed = pytestconfig.getoption("--policy-seed")
    steps_a_world = 400
    worlds = pytestconfig.getoption("--policy-steps") // steps_a_world
    counts: Counter[str] = Counter()
    for seed in range(worlds) if only_seed is None else [only_seed]:
        rng = Random(seed)
        world = World(random_setting(rng), rng)
        try:
            begin(world, rng)
            for number in range(steps_a_world):
                step(world, rng)
                if number % 16 == 0:
                    world.check_promises()
            world.settle()
        except Exception as error:
            error.args = (f"{error} (to see it again: --policy-seed {seed}; {world.setting})",)
            raise
        counts.update(world.counts)
    print(f"\n{worlds * steps_a_world} steps: {dict(counts)}")
    if only_seed is None:
        assert {"granted admit", "granted grow", "waited", "due by a hard min", "requests"} <= set(counts)


# Order


def shares_under_saturation(weights: dict[str, int], *, clients: int, wait_s: float, seconds: int) -> dict[str, float]:
    """What part of the pages each tenant has on average while all want more than there is; waits end after `wait_s`."""
    tenants = {name: Tenant(name, Guarantee(weight=weight)) for name, weight in weights.items()}
    desk = Desk(100, *tenants.values())
    ends: deque[tuple[float, Waiting]] = deque()
    page_seconds: Counter[str] = Counter()
    waiting: Counter[str] = Counter()
    for tick in range(seconds * 4):
        now_s = tick / 4
        while ends and ends[0][0] <= now_s:
            entry = ends.popleft()[1]
            tenants[entry.party.name].held_pages -= entry.wish.page_count
        for name, tenant in tenants.items():
            while waiting[name] < clients:
                desk.admit(tenant, 5, now_s, wait_s=wait_s)
                waiting[name] += 1
        granted, refused = desk.serve(now_s)
        for entry in granted:
            ends.append((now_s + 10.0, entry))
        for entry in [*granted, *(entry for entry, _ in refused)]:
            waiting[entry.party.name] -= 1
        if tick > seconds:
            page_seconds.update({name: tenant.held_pages for name, tenant in tenants.items()})
    return {name: page_count / page_seconds.total() for name, page_count in page_seconds.items()}


def test_a_tenant_with_twice_the_weight_has_twice_the_share_when_all_want_more_than_there_is() -> None:
    shares = shares_under_saturation({"light": 1, "heavy": 2}, clients=40, wait_s=30.0, seconds=600)
    assert shares["heavy"] / shares["light"] == pytest.approx(2.0, abs=0.3)


def test_equal_weights_have_equal_shares() -> None:
    shares = shares_under_saturation({"a": 1, "b": 1, "c": 1}, clients=40, wait_s=30.0, seconds=300)
    assert all(share == pytest.approx(1 / 3, abs=0.04) for share in shares.values())


def test_without_weights_to_tell_them_apart_the_first_to_come_is_served_first() -> None:
    a, b = Tenant("a"), Tenant("b")
    desk = Desk(1, a, b)
    desk.admit(b, 1, NOW_S)
    desk.admit(a, 1, NOW_S)
    assert desk.granted(NOW_S) == [("b", 1)]


def test_who_has_pages_already_comes_after_who_has_none() -> None:
    rich, poor = Tenant("rich", held_pages=9), Tenant("poor")
    desk = Desk(10, rich, poor)
    desk.admit(rich, 1, NOW_S)
    desk.admit(poor, 1, NOW_S + 1)
    assert desk.granted(NOW_S + 1) == [("poor", 1)]


def test_a_wish_that_waited_long_enough_passes_those_with_a_smaller_share() -> None:
    """A share counts for ten seconds."""
    rich, poor = Tenant("rich", held_pages=5), Tenant("poor", held_pages=4)
    for later_s, first in ((9.0, "poor"), (11.0, "rich")):
        rich.held_pages = 5
        desk = Desk(10, rich, poor)
        poor.held_pages = 0
        desk.admit(rich, 5, NOW_S)
        desk.admit(poor, 5, NOW_S + later_s)
        assert desk.granted(NOW_S + later_s)[0][0] == first
        rich.held_pages = poor.held_pages = 0


def test_a_tenant_counts_for_the_shares_from_when_pages_are_made_for_it() -> None:
    """Else the order changed when it gets them, and nobody would look again."""
    rich, poor, heavy = Tenant("rich", held_pages=4), Tenant("poor"), Tenant("heavy", Guarantee(weight=1000))
    desk = Desk(10, rich, poor, heavy)
    desk.grow(heavy, 6, NOW_S)
    desk.admit(rich, 4, NOW_S)
    desk.admit(poor, 4, NOW_S + 12)
    for _ in range(2):
        desk.policy.award(NOW_S + 12)
        head = desk.policy.head_gap(NOW_S + 12)
        assert head is not None
        assert head[0].party is poor, "a share is a page beside such a weight, so rich has four"
        for entry in desk.policy.wishes.awarded:
            desk.policy.remove(entry)
            heavy.held_pages += entry.awarded_pages


def test_what_is_within_a_min_goes_first_whoever_came_before() -> None:
    plain, promised = Tenant("plain"), Tenant("promised", Guarantee(min_pages=5))
    desk = Desk(10, plain, promised)
    desk.admit(plain, 6, NOW_S)
    desk.admit(promised, 5, NOW_S + 50)
    assert desk.granted(NOW_S + 50) == [("promised", 5)]


def test_a_tenants_own_wishes_stay_in_order() -> None:
    tenant, other = Tenant("tenant"), Tenant("other", held_pages=5)
    desk = Desk(10, tenant, other)
    desk.admit(tenant, 8, NOW_S)
    desk.admit(tenant, 1, NOW_S)
    assert desk.granted(NOW_S) == []
    other.held_pages = 0
    assert desk.granted(NOW_S + 1) == [("tenant", 8), ("tenant", 1)]


def test_whoever_is_behind_a_wish_whose_time_is_over_has_its_turn_at_once() -> None:
    tenant, other = Tenant("tenant"), Tenant("other", held_pages=5)
    desk = Desk(10, tenant, other)
    first = desk.admit(tenant, 8, NOW_S, wait_s=1.0)
    desk.admit(tenant, 1, NOW_S)
    assert desk.granted(NOW_S) == []
    granted, refused = desk.serve(NOW_S + 1)
    assert [entry.wish.page_count for entry in granted] == [1]
    assert [(entry, type(error)) for entry, error in refused] == [(first, PoolExhausted)]


# What is had, and what is refused


def test_a_grow_is_answered_at_once_with_what_there_is() -> None:
    tenant, other = Tenant("tenant"), Tenant("other", held_pages=7)
    desk = Desk(10, tenant, other)
    desk.grow(tenant, 8, NOW_S, fewest=2)
    assert desk.granted(NOW_S) == [("tenant", 3)]
    with pytest.raises(PoolExhausted):
        desk.grow(tenant, 1, NOW_S)


def test_an_admit_waits_for_all_of_it_and_takes_part_only_when_its_time_is_over() -> None:
    tenant, other = Tenant("tenant"), Tenant("other", held_pages=7)
    desk = Desk(10, tenant, other)
    desk.admit(tenant, 8, NOW_S, wait_s=2.0, fewest=2)
    assert desk.granted(NOW_S) == []
    assert desk.granted(NOW_S + 2) == [("tenant", 3)]


def test_an_admit_does_not_wait_for_more_than_there_can_be() -> None:
    tenant = Tenant("tenant", Guarantee(max_pages=4))
    desk = Desk(10, tenant, Tenant("hard", Guarantee(min_pages=3, mode=MinMode.HARD)))
    desk.admit(tenant, 8, NOW_S, fewest=2)
    assert desk.granted(NOW_S) == [("tenant", 4)]


def test_what_can_never_be_met_is_refused_at_once_with_the_reason() -> None:
    tenant = Tenant("tenant", Guarantee(max_pages=8))
    hard = Tenant("hard", Guarantee(min_pages=3, mode=MinMode.HARD))
    desk = Desk(10, tenant, hard, Tenant("soft", Guarantee(min_pages=2), held_pages=1))
    with pytest.raises(LimitExceeded, match="more than the 8"):
        desk.admit(tenant, 9, NOW_S)
    with pytest.raises(WaitHopeless, match="at most 6 can come free"):  # what soft does not use it may have
        desk.admit(tenant, 7, NOW_S)
    desk.admit(tenant, 6, NOW_S)
    tenant.guarantee = Guarantee(max_pages=5)
    [(_, error)] = desk.policy.recheck()
    assert isinstance(error, LimitExceeded)


def test_what_was_awarded_above_a_max_that_was_lowered_since_queues_again() -> None:
    tenant = Tenant("tenant")
    desk = Desk(10, tenant)
    entry = desk.admit(tenant, 8, NOW_S, fewest=2)
    desk.policy.award(NOW_S)
    assert entry.awarded_pages == 8
    tenant.guarantee = Guarantee(max_pages=5)
    assert desk.policy.recheck() == []
    assert entry.awarded_pages == 0
    assert desk.granted(NOW_S) == [("tenant", 5)]


def test_a_hard_min_is_kept_free_and_a_soft_one_lent_until_it_is_wanted() -> None:
    hard = Tenant("hard", Guarantee(min_pages=3, mode=MinMode.HARD))
    soft = Tenant("soft", Guarantee(min_pages=3))
    greedy = Tenant("greedy")
    desk = Desk(10, hard, soft, greedy)
    assert desk.policy.room(greedy, NOW_S) == 7
    desk.grow(greedy, 7, NOW_S)
    desk.serve(NOW_S)
    assert desk.policy.promise_gap(NOW_S) == 0
    desk.admit(soft, 2, NOW_S)
    desk.serve(NOW_S)
    assert desk.policy.promise_gap(NOW_S) == 2
    assert desk.policy.room(hard, NOW_S) == 3


def test_pages_that_come_back_for_a_short_min_go_to_nobody_above_its_own() -> None:
    soft, greedy = Tenant("soft", Guarantee(min_pages=4)), Tenant("greedy", held_pages=10)
    desk = Desk(10, soft, greedy)
    desk.admit(soft, 4, NOW_S)
    for number in range(4):
        assert desk.granted(NOW_S + number) == []
        greedy.held_pages -= 1
        with pytest.raises(PoolExhausted):
            desk.grow(greedy, 1, NOW_S + number)
        desk.admit(greedy, 1, NOW_S + number, wait_s=0.0)
        assert desk.policy.promise_gap(NOW_S + number) == 3 - number
    assert desk.granted(NOW_S + 4) == [("soft", 4)]


def test_nothing_is_missing_for_promises_when_only_the_device_has_less_than_was_awarded() -> None:
    plain, other = Tenant("plain"), Tenant("other", held_pages=2)
    desk = Desk(10, plain, other)
    desk.admit(plain, 8, NOW_S)
    desk.policy.award(NOW_S)
    desk.books.capacity_pages = 4
    assert desk.policy.free_pages < 0
    assert desk.policy.promise_gap(NOW_S) == 0


# Claims


def test_what_a_grow_was_refused_within_its_min_is_kept_for_it_for_a_while() -> None:
    soft, greedy = Tenant("soft", Guarantee(min_pages=4)), Tenant("greedy", held_pages=9)
    desk = Desk(10, soft, greedy)
    with pytest.raises(PoolExhausted):
        desk.grow(soft, 3, NOW_S)
    assert desk.policy.promise_gap(NOW_S) == 2
    assert desk.policy.room(greedy, NOW_S) == 0
    assert desk.policy.next_change_s(NOW_S) == NOW_S + CLAIM_S
    assert desk.policy.promise_gap(NOW_S + CLAIM_S) == 0
    assert desk.policy.room(greedy, NOW_S + CLAIM_S) == 1
    assert desk.policy.next_change_s(NOW_S + CLAIM_S) is None


def test_a_claim_is_spent_by_what_its_tenant_gets() -> None:
    soft, greedy = Tenant("soft", Guarantee(min_pages=4)), Tenant("greedy", held_pages=10)
    desk = Desk(10, soft, greedy)
    with pytest.raises(PoolExhausted):
        desk.grow(soft, 3, NOW_S)
    greedy.held_pages = 8
    desk.grow(soft, 2, NOW_S + 1)
    desk.serve(NOW_S + 1)
    assert desk.policy.claimed_pages(soft, NOW_S + 1) == 1
    greedy.held_pages = 7
    desk.grow(soft, 1, NOW_S + 2)
    assert desk.policy.claimed_pages(soft, NOW_S + 2) == 0


def test_a_grow_beyond_its_min_claims_nothing() -> None:
    soft, greedy = Tenant("soft", Guarantee(min_pages=4)), Tenant("greedy", held_pages=10)
    desk = Desk(10, soft, greedy)
    with pytest.raises(PoolExhausted):
        desk.grow(soft, 5, NOW_S)
    assert desk.policy.promise_gap(NOW_S) == 0


def test_who_asks_again_for_what_it_was_refused_is_not_counted_twice() -> None:
    soft, greedy = Tenant("soft", Guarantee(min_pages=8)), Tenant("greedy", held_pages=10)
    desk = Desk(10, soft, greedy)
    desk.admit(soft, 4, NOW_S, wait_s=1.0)
    desk.serve(NOW_S + 1)
    desk.admit(soft, 4, NOW_S + 1)
    assert desk.policy.promise_gap(NOW_S + 1) == 4


# Gathering


def test_pages_are_gathered_for_the_first_that_lacks_some_then_others_pass_then_longer() -> None:
    big, small = Tenant("big"), Tenant("small")
    rest = Tenant("rest", held_pages=6)
    desk = Desk(10, big, small, rest, timing=Timing(head_hold_s=2.0, ageing_s=0.0))
    desk.admit(big, 8, NOW_S)
    passed = []
    for second in range(20):
        desk.admit(small, 1, NOW_S + second, wait_s=0.0)
        passed.append("x" if desk.granted(NOW_S + second) else ".")
        small.held_pages = 0
    assert "".join(passed) == "..xx....xxxx......xx"
    head = desk.policy.head_gap(NOW_S + 19)
    assert head is not None
    assert (head[0].party, head[1]) == (big, 4)
    rest.held_pages = 2
    assert desk.granted(NOW_S + 19) == [("big", 8)]
    assert desk.policy.head_gap(NOW_S + 19) is None


def test_within_its_min_a_tenant_passes_one_that_pages_are_gathered_for() -> None:
    big, promised = Tenant("big"), Tenant("promised", Guarantee(min_pages=2))
    desk = Desk(10, big, promised, Tenant("rest", held_pages=6))
    desk.admit(big, 8, NOW_S)
    desk.admit(promised, 2, NOW_S)
    assert desk.granted(NOW_S) == [("promised", 2)]


@pytest.mark.parametrize("why", ["its own pages", "what others were promised", "the device"])
def test_nothing_is_gathered_for_a_wish_that_would_lack_pages_all_the_same(why: str) -> None:
    big, small = Tenant("big", held_pages=2), Tenant("small")
    soft = Tenant("soft", Guarantee(min_pages=4))
    desk = Desk(10, big, small, soft)
    entry = desk.admit(big, 5 if why == "its own pages" else 7, NOW_S)
    if why == "its own pages":
        big.guarantee = Guarantee(max_pages=6)
    elif why == "what others were promised":
        soft.held_pages = 4
    else:
        desk.books.capacity_pages = 6
    desk.admit(small, 1, NOW_S)
    assert desk.granted(NOW_S) == [("small", 1)]
    assert desk.policy.head_gap(NOW_S) == ((entry, 1) if why == "its own pages" else None)


def test_who_went_away_is_gathered_for_no_more() -> None:
    big = Tenant("big")
    desk = Desk(10, big, Tenant("rest", held_pages=6))
    entry = desk.admit(big, 8, NOW_S)
    desk.policy.award(NOW_S)
    desk.policy.remove(entry)
    assert desk.policy.head_gap(NOW_S) is None
    assert desk.policy.next_change_s(NOW_S) is None


def test_without_a_time_to_hold_nothing_is_gathered() -> None:
    big, small = Tenant("big"), Tenant("small")
    desk = Desk(10, big, small, Tenant("rest", held_pages=6), timing=Timing(head_hold_s=0.0))
    desk.admit(big, 8, NOW_S)
    desk.admit(small, 1, NOW_S)
    assert desk.granted(NOW_S) == [("small", 1)]


# Ahead of need


def test_what_nobody_needs_yet_is_lent_like_anything_while_nobody_waits() -> None:
    reader = Tenant("reader", Guarantee(max_pages=8))
    desk = Desk(10, reader, Tenant("other", held_pages=4))
    desk.want_ahead(reader, 5, NOW_S)
    assert desk.granted(NOW_S) == [("reader", 5)]
    desk.want_ahead(reader, 5, NOW_S)
    assert desk.granted(NOW_S) == [("reader", 1)]


@pytest.mark.parametrize("at_s", [0.0, 3.0])
def test_what_nobody_needs_yet_is_refused_while_pages_are_gathered_in_recesses_too(at_s: float) -> None:
    big, reader = Tenant("big"), Tenant("reader")
    desk = Desk(10, big, reader, Tenant("rest", held_pages=6), timing=Timing(head_hold_s=2.0))
    desk.admit(big, 8, NOW_S)
    desk.serve(NOW_S + at_s)
    with pytest.raises(PoolExhausted):
        desk.want_ahead(reader, 1, NOW_S + at_s)
    desk.grow(reader, 1, NOW_S + at_s)  # what runs goes on
    assert desk.granted(NOW_S + at_s) == [("reader", 1)]


def test_what_nobody_needs_yet_is_refused_while_the_same_tenant_waits_below_its_max() -> None:
    reader = Tenant("reader", Guarantee(max_pages=8), held_pages=4)
    desk = Desk(20, reader)
    desk.admit(reader, 6, NOW_S)
    desk.serve(NOW_S)
    with pytest.raises(PoolExhausted):
        desk.want_ahead(reader, 4, NOW_S)


def test_a_refusal_of_what_nobody_needs_yet_breaks_no_promise() -> None:
    soft, greedy = Tenant("soft", Guarantee(min_pages=4)), Tenant("greedy", held_pages=10)
    desk = Desk(10, soft, greedy)
    with pytest.raises(PoolExhausted):
        desk.want_ahead(soft, 3, NOW_S)
    assert desk.policy.promise_gap(NOW_S) == 0


# Values


@pytest.mark.parametrize("times", [(-1.0, 1.0), (1.0, -1.0), (1e-9, 1.0)])
def test_times_that_make_no_sense_are_refused(times: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="not times"):
        Timing(*times)


@pytest.mark.parametrize(("page_count", "fewest"), [(1, 0), (1, 2), (0, 0)])
def test_a_wish_for_nothing_is_none(page_count: int, fewest: int) -> None:
    with pytest.raises(ValueError, match="not a wish"):
        Wish("s", "r", page_count, fewest, Purpose.ADMIT, 0.0)


def test_a_wish_waits_once() -> None:
    tenant = Tenant("tenant")
    desk = Desk(10, tenant, Tenant("rest", held_pages=10))
    entry = desk.admit(tenant, 1, NOW_S)
    with pytest.raises(ValueError, match="waits already"):
        desk.policy.add(entry.wish, tenant, NOW_S)


@pytest.mark.parametrize(
    "changes",
    [{"min_pages": -1}, {"weight": 0}, {"weight": 1001}, {"max_pages": 0}, {"min_pages": 5, "max_pages": 4}],
)
def test_a_guarantee_that_contradicts_itself_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        Guarantee(**changes)


def test_only_a_hard_min_is_kept_free() -> None:
    assert Guarantee(min_pages=5, mode=MinMode.HARD).hard_pages == 5
    assert Guarantee(min_pages=5).hard_pages == 0


def test_access_is_by_user_or_by_any_group() -> None:
    access = Access(frozenset({1000}), frozenset({50}))
    assert access.allows(1000, ())
    assert access.allows(1, (7, 50))
    assert not access.allows(50, (1000,))
    assert not Access(frozenset()).allows(0, (0,))
    assert (str(access), str(Access(frozenset()))) == ("uid 1000, gid 50", "nobody")


def test_a_wish_that_reaches_beyond_the_min_is_none_that_was_promised() -> None:
    a, b = Tenant("a", Guarantee(min_pages=10)), Tenant("b")
    desk = Desk(20, a, b)
    desk.books.tenants[1].held_pages = 20
    desk.admit(a, 12, NOW_S)
    desk.policy.award(NOW_S)
    assert desk.policy.promise_gap(NOW_S) == 0, "nobody's running requests are taken for what was not promised"
    desk.admit(a, 4, NOW_S)
    assert desk.policy.promise_gap(NOW_S) == 0, "it waits behind its own tenant's larger one"
