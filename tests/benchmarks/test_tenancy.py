"""The simulator of several tenants: pages are conserved, and what it says follows from memory alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.tenancy.account import Account
from benchmarks.tenancy.engine import DELAY_S
from benchmarks.tenancy.pool import RECLAIM_WITHIN_S, Ask, Pool
from benchmarks.tenancy.replay import MakePool, Outcome, TooManyDelayed, replay
from benchmarks.tenancy.sizing import Mix, first_come, pages_alone, shares_of, sizes_of, smallest_pages, vattd
from benchmarks.tenancy.workload import NAMES, STEP_S, Workload, load
from vattd.guarantee import NO_GUARANTEE, Guarantee, MinMode

MINUTES = 2.0
Pools = Callable[[int], MakePool]  # by capacity

POOLS = pytest.mark.parametrize("pool", [first_come, vattd])


class Watched:
    """A pool whose accounts are checked after each change."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.accounts = pool.accounts
        self.page_s = 0.0  # pages lent, by time
        self._last_s = 0.0

    def grow(self, account: Account, page_count: int, now_s: float) -> bool:
        self._pass_until(now_s)
        grew = self._pool.grow(account, page_count, now_s)
        self._check()
        return grew

    def ask(self, account: Account, page_count: int, now_s: float) -> Ask:
        return self._pool.ask(account, page_count, now_s)

    def withdraw(self, ask: Ask) -> None:
        self._pool.withdraw(ask)

    def give_back(self, account: Account, page_count: int, now_s: float) -> None:
        self._pass_until(now_s)
        self._pool.give_back(account, page_count, now_s)
        self._check()

    def answer(self, account: Account, now_s: float) -> None:
        self._pool.answer(account, now_s)

    def serve(self, now_s: float) -> None:
        self._pass_until(now_s)
        self._pool.serve(now_s)
        self._check()

    def _pass_until(self, now_s: float) -> None:
        assert now_s >= self._last_s
        self.page_s += self.accounts.lent_pages * (now_s - self._last_s)
        self._last_s = now_s

    def _check(self) -> None:
        held = [account.held_pages for account in self.accounts.holding()]
        assert min(held, default=0) >= 0
        assert sum(held) == self.accounts.lent_pages <= self.accounts.capacity_pages


def watched_replay(
    workloads: Sequence[Workload], make_pool: MakePool, guarantees: Sequence[Guarantee] | None = None
) -> tuple[list[Outcome], Watched]:
    pools = []

    def make(accounts: Sequence[Account]) -> Pool:
        pools.append(Watched(make_pool(accounts)))
        return pools[0]

    return replay(workloads, make, guarantees), pools[0]


@cache
def part(name: str, seed: int = 0, minutes: float = MINUTES) -> Workload:
    return load(name, seed).first(minutes * 60)


def half(workloads: Sequence[Workload]) -> int:
    """Pages that are too few, and enough for each request."""
    return max(sum(w.peak_pages for w in workloads) // 2, *(w.largest_pages for w in workloads))


@POOLS
@pytest.mark.parametrize("mode", MinMode)
def test_every_request_ends_and_every_page_comes_back(pool: Pools, mode: MinMode) -> None:
    workloads = [part(name) for name in NAMES]
    size = half(workloads)
    guarantees = [Guarantee(min_pages=size // 20, mode=mode) for _ in workloads]
    outcomes, after = watched_replay(workloads, pool(size), guarantees)
    assert [outcome.finished for outcome in outcomes] == [len(workload) for workload in workloads]
    assert after.accounts.lent_pages == 0
    assert max(outcome.waits_s.max() for outcome in outcomes) > 0  # it was short


@POOLS
@pytest.mark.parametrize("name", NAMES)
def test_with_as_many_pages_as_a_tenant_uses_nobody_waits_and_all_of_them_are_used(pool: Pools, name: str) -> None:
    workload = part(name)
    (outcome,), after = watched_replay([workload], pool(workload.peak_pages))
    assert outcome.waits_s.max() == outcome.preemptions == 0
    assert after.page_s == pytest.approx(workload.demand_pages().sum() * STEP_S)


@POOLS
def test_where_each_peak_fits_nobody_waits(pool: Pools) -> None:
    workloads = [part(name) for name in NAMES]
    for outcome in replay(workloads, pool(sum(workload.peak_pages for workload in workloads))):
        assert outcome.waits_s.max() == outcome.preemptions == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_tenant_alone_is_served_by_the_policy_as_by_a_plain_pool(name: str) -> None:
    workload = part(name)
    size = half([workload])
    (plain,), (ours,) = replay([workload], first_come(size)), replay([workload], vattd(size))
    assert (plain.waits_s == ours.waits_s).all()
    assert plain.waits_s.max() > 0


def test_one_tenant_needs_as_much_of_a_split_as_of_a_pool() -> None:
    sizes = sizes_of(Mix(("azure_conv",), 0, MINUTES))
    assert sizes.split_pages == pages_alone("azure_conv", 0, MINUTES)
    precision = sizes.split_pages // 100
    for pages in (sizes.first_come_pages, sizes.vattd_pages, sizes.with_mins_pages):
        assert pages == pytest.approx(sizes.split_pages, abs=precision)


@POOLS
def test_more_memory_does_not_have_many_more_requests_wait(pool: Pools) -> None:
    workloads = [part("azure_conv"), part("azure_code")]
    peak = sum(workload.peak_pages for workload in workloads)
    delayed = [
        [outcome.delayed_fraction for outcome in replay(workloads, pool(int(peak * share)))]
        for share in (0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
    ]
    for less, more in itertools.pairwise(delayed):
        assert (np.array(more) <= np.array(less) + 0.02).all()
    assert max(delayed[0]) > 0.1
    assert max(delayed[-1]) == 0


@pytest.mark.parametrize("mode", MinMode)
def test_within_its_min_a_tenant_waits_no_longer_than_others_have_to_answer(mode: MinMode) -> None:
    workloads = [part("azure_conv", minutes=5.0), part("azure_code", minutes=5.0)]
    promised = workloads[1].peak_pages
    size = promised + workloads[0].largest_pages
    _, without = replay(workloads, vattd(size))
    _, with_min = replay(workloads, vattd(size), [NO_GUARANTEE, Guarantee(min_pages=promised, mode=mode)])
    assert with_min.waits_s.max() <= RECLAIM_WITHIN_S < without.waits_s.max()


def test_the_same_replay_has_the_same_outcome() -> None:
    def once() -> list[Outcome]:
        workloads = [load(name, seed=1).first(MINUTES * 60) for name in NAMES]
        size = half(workloads)
        return replay(workloads, vattd(size), shares_of(size // 2, [w.peak_pages for w in workloads]))

    for first, second in zip(once(), once(), strict=True):
        assert first.preemptions == second.preemptions
        assert (first.waits_s == second.waits_s).all()


def test_a_replay_stops_early_exactly_where_a_tenant_has_too_many_delayed() -> None:
    workload = part("azure_conv")
    for share in (0.6, 0.95):
        size = int(workload.peak_pages * share)
        (outcome,) = replay([workload], vattd(size))
        if (outcome.waits_s > DELAY_S).sum() > len(workload) // 100:
            with pytest.raises(TooManyDelayed):
                replay([workload], vattd(size), stop_early=True)
        else:
            replay([workload], vattd(size), stop_early=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_moves_requests_and_changes_none(name: str) -> None:
    recorded, moved = load(name, seed=0), load(name, seed=1)
    lengths = [sorted(zip(w.prompt_tokens, w.output_tokens, strict=True)) for w in (recorded, moved)]
    assert lengths[0] == lengths[1]
    assert (np.diff(moved.arrival_s) >= 0).all()
    assert (recorded.arrival_s != moved.arrival_s).any()


@given(least=st.integers(1, 1000), more=st.integers(0, 5000), guess=st.integers(1, 6000), precision=st.integers(1, 100))
def test_the_smallest_size_is_found_to_the_precision_from_any_guess(
    least: int, more: int, guess: int, precision: int
) -> None:
    needed = least + more
    found = smallest_pages(lambda size: size >= needed, least, guess, precision)
    assert needed <= found < needed + precision
