"""What is missing for whom, who is asked or killed for it, and what status says of it."""

from __future__ import annotations

import pytest

from vatt.errors import PoolExhausted
from vatt.usage import Usage
from vattd.guarantee import Access, Guarantee, MinMode
from vattd.ledger import Ledger
from vattd.policy import Policy
from vattd.pressure import DYING_S, Pressure, PromiseState, Review
from vattd.reclaim import ASK_AGAIN_S, Reason, Reclaims
from vattd.share_out import Depth
from vattd.stock import Stock
from vattd.wish import Purpose, Timing, Wish

POOL_PAGES = 20
NOW_S = 100.0
WITHIN_S = 1.0
KILL_S = 5.0
UID = 1000


class Bench:
    """Pages are ready as soon as they are lent."""

    def __init__(self, *, kill_after_s: float | None = None) -> None:
        self.stock = Stock(POOL_PAGES, shares_zone=True)
        self.ledger = Ledger(self.stock, page_size_bytes=8, incarnation=1)
        self.policy = Policy(self.ledger, Timing())
        self.reclaims = Reclaims(WITHIN_S, kill_after_s)
        self.deaf: set[str] = set()
        self.unkillable: set[str] = set()
        self.pressure = Pressure(
            self.ledger, self.policy, self.reclaims, lambda session_id: session_id not in self.deaf
        )
        for extent in self.stock.begin_create(None, POOL_PAGES):
            self.stock.finish_create(extent, clean=True)
        self._requests = 0

    def attach(self, *session_ids: str) -> None:
        """A session's tenant is its first letter."""
        for session_id in session_ids:
            self.ledger.open_session(session_id, session_id[0], UID)

    def reserve(self, tenant: str, guarantee: Guarantee) -> None:
        self.ledger.configure(tenant, guarantee, Access(frozenset({UID})))

    def lend(self, session_id: str, page_count: int) -> None:
        self._requests += 1
        self.ledger.lease(session_id, f"l{self._requests}", page_count, page_count)

    def give_back(self, session_id: str, page_count: int) -> None:
        """It gives back by ending leases of one page."""
        for _ in range(page_count):
            request_id = next(
                request_id
                for request_id in [f"l{number}" for number in range(1, self._requests + 1)]
                if self.ledger.remembers(session_id, request_id) and self.ledger.cancel(session_id, request_id)
            )
            assert request_id
            self.reclaims.returned(session_id, 1)

    def admit(self, session_id: str, page_count: int, now_s: float, *, fewest: int | None = None) -> None:
        self._requests += 1
        wish = Wish(session_id, f"w{self._requests}", page_count, fewest or page_count, Purpose.ADMIT, now_s + 1000)
        self.policy.add(wish, self.ledger.tenant_of(session_id), now_s)
        self.policy.award(now_s)

    def grow(self, session_id: str, page_count: int, now_s: float) -> None:
        self._requests += 1
        wish = Wish(session_id, f"w{self._requests}", page_count, page_count, Purpose.GROW, now_s)
        self.policy.add(wish, self.ledger.tenant_of(session_id), now_s)

    def review(self, now_s: float) -> Review:
        self.policy.award(now_s)
        review = self.pressure.review(now_s)
        if review.victim is not None and review.victim.session_id in self.unkillable:
            self.pressure.note_unkillable(review.victim.session_id)
        elif review.victim is not None:
            self.pressure.note_killed(review.victim.session_id, now_s)
        return review

    def victims(self, now_s: float) -> list[str]:
        """All that are killed now."""
        found = []
        while (victim := self.review(now_s).victim) is not None:
            found.append(victim.session_id)
        return found

    def asked(self, now_s: float) -> dict[str, int]:
        return {request.session_id: request.page_count for request in self.review(now_s).requests}

    def state_of(self, tenant: str, now_s: float) -> tuple[PromiseState, int, tuple[str, ...]]:
        found = self.ledger.tenant(tenant)
        assert found is not None
        view = self.pressure.promises_of([found], now_s)[0]
        return view.state, view.missing_pages, view.broken_by


def short_bench(*, kill_after_s: float | None = None, mode: MinMode = MinMode.SOFT) -> Bench:
    """All pages are b's and c's, and a, which was promised eight, waits for them."""
    bench = Bench(kill_after_s=kill_after_s)
    bench.attach("a", "b", "c")
    for _ in range(12):
        bench.lend("b", 1)
    for _ in range(8):
        bench.lend("c", 1)
    bench.reserve("a", Guarantee(min_pages=8, mode=mode))
    bench.reserve("c", Guarantee(min_pages=6))
    bench.admit("a", 8, NOW_S)
    return bench


@pytest.mark.parametrize("mode", MinMode)
@pytest.mark.parametrize("later_s", [0.0, 2.0])
def test_of_several_tenants_together_the_same_is_said_as_of_each(mode: MinMode, later_s: float) -> None:
    bench = short_bench(mode=mode)
    bench.attach("d")
    bench.reserve("b", Guarantee(min_pages=2, mode=MinMode.HARD))
    bench.review(NOW_S)
    tenants, now_s = list(bench.ledger.tenants()), NOW_S + later_s
    views = bench.pressure.promises_of(tenants, now_s)
    assert views == [bench.pressure.promises_of([tenant], now_s)[0] for tenant in tenants]
    assert views[0].state is (PromiseState.BROKEN if later_s else PromiseState.PENDING)
    assert {view.state for view in views[1:]} == {PromiseState.HELD}


def test_those_above_their_own_min_are_asked_for_what_a_promise_lacks() -> None:
    bench = short_bench()
    assert bench.asked(NOW_S) == {"b": 8}
    bench.give_back("b", 8)
    assert bench.asked(NOW_S + 0.1) == {}
    assert not bench.reclaims


def test_nobody_is_asked_while_nothing_is_missing() -> None:
    bench = Bench()
    bench.attach("a", "b")
    bench.lend("b", 5)
    bench.reserve("a", Guarantee(min_pages=8))
    assert bench.review(NOW_S) == Review([], [], None)


def test_a_promise_is_held_then_pending_then_broken_by_who_did_not_give() -> None:
    bench = short_bench()
    bench.reclaims.want(Reason.PROMISE, 0, [], NOW_S)
    bench.review(NOW_S)
    assert bench.state_of("a", NOW_S + 0.9) == (PromiseState.PENDING, 8, ())
    tenant = bench.ledger.tenant("a")
    assert tenant is not None
    assert bench.pressure.promises_of([tenant], NOW_S + 0.9)[0].deadline_s == NOW_S + WITHIN_S
    later_s = NOW_S + WITHIN_S
    assert [ask.session_id for ask in bench.review(later_s).ignored] == ["b"]
    assert bench.state_of("a", later_s) == (PromiseState.PENDING, 8, ()), "c has two above its min, and was asked"
    assert bench.state_of("a", later_s + WITHIN_S) == (PromiseState.BROKEN, 8, ("b", "c"))
    bench.give_back("b", 8)
    bench.review(later_s + WITHIN_S)
    assert bench.state_of("a", later_s + WITHIN_S)[0] is PromiseState.HELD


def test_a_promise_is_broken_by_the_device_when_that_has_too_little() -> None:
    bench = Bench()
    bench.attach("a", "b")
    bench.reserve("a", Guarantee(min_pages=12))
    bench.reserve("b", Guarantee(min_pages=8))
    bench.lend("b", 8)
    for extent in bench.stock.begin_destroy_idle(5, among=bench.ledger.shelves()):
        bench.stock.fail_destroy(extent)
    bench.admit("a", 12, NOW_S, fewest=1)
    assert bench.state_of("a", NOW_S) == (PromiseState.HELD, 0, ()), "it has the seven that there are"
    with pytest.raises(PoolExhausted):
        bench.grow("a", 5, NOW_S)
    assert bench.asked(NOW_S) == {}
    assert bench.state_of("a", NOW_S) == (PromiseState.BROKEN, 5, ("device",))


def test_what_a_soft_min_does_not_use_and_others_have_is_lent() -> None:
    bench = Bench()
    bench.attach("a", "b")
    bench.lend("b", 15)
    bench.reserve("a", Guarantee(min_pages=8))
    tenant = bench.ledger.tenant("a")
    assert tenant is not None
    view = bench.pressure.promises_of([tenant], NOW_S)[0]
    assert (view.state, view.lent_pages) == (PromiseState.HELD, 3)


def test_a_hard_min_that_was_set_when_its_pages_were_lent_is_asked_back_at_once() -> None:
    bench = Bench()
    bench.attach("a", "b")
    bench.lend("b", 15)
    bench.reserve("a", Guarantee(min_pages=8, mode=MinMode.HARD))
    assert bench.asked(NOW_S) == {"b": 3}


def test_a_tenant_above_a_max_that_was_lowered_is_asked_for_what_it_has_too_much() -> None:
    bench = Bench()
    bench.attach("b1", "b2", "c")
    bench.lend("b1", 6)
    bench.lend("b2", 4)
    bench.lend("c", 4)
    bench.reserve("b", Guarantee(max_pages=7))
    bench.ledger.report_usage("b1", Usage(6, 5 * 8))
    bench.ledger.report_usage("b2", Usage(4, 4 * 8))
    [request] = bench.review(NOW_S).requests
    assert (request.session_id, request.page_count, request.depth) == ("b1", 3, Depth.RUNNING)


def test_for_one_that_waits_its_turn_idle_pages_are_asked_of_its_own_sessions_too() -> None:
    bench = Bench()
    bench.attach("a1", "a2", "b")
    bench.reserve("a", Guarantee(min_pages=6))
    bench.lend("a1", 6)
    bench.lend("b", 10)
    bench.ledger.report_usage("a1", Usage(6, 3 * 8))
    bench.ledger.report_usage("b", Usage(10, 9 * 8))
    bench.admit("a2", 12, NOW_S)
    requests = bench.review(NOW_S).requests
    assert {request.session_id: request.page_count for request in requests} == {"a1": 3, "b": 1}
    assert {request.depth for request in requests} == {Depth.IDLE}


def test_a_tenant_at_its_max_is_asked_for_idle_pages_that_its_own_next_request_waits_for() -> None:
    bench = Bench()
    bench.attach("a1", "a2")
    bench.reserve("a", Guarantee(max_pages=10))
    bench.lend("a1", 6)
    bench.admit("a2", 7, NOW_S)
    assert bench.asked(NOW_S) == {"a1": 3}


def test_only_one_is_killed_while_its_pages_are_enough_for_what_is_missing() -> None:
    bench = short_bench(kill_after_s=KILL_S)
    bench.review(NOW_S)
    bench.review(NOW_S + WITHIN_S)  # b is passed over, and c asked
    victim = bench.review(NOW_S + KILL_S).victim
    assert victim is not None
    assert victim.session_id == "b"
    late_s = NOW_S + WITHIN_S + KILL_S
    assert bench.review(late_s).victim is None, "it dies"
    bench.ledger.end_session("b", unmapped=False)
    bench.pressure.session_ended("b")
    assert bench.review(late_s).victim is None, "nothing is missing"
    assert bench.reclaims.counts.killed == 1


def test_the_next_one_is_killed_where_the_first_has_too_little() -> None:
    bench = Bench(kill_after_s=KILL_S)
    bench.attach("a", "b", "c")
    bench.lend("b", 4)
    bench.lend("c", 16)
    bench.reserve("a", Guarantee(min_pages=12))
    bench.admit("a", 12, NOW_S)
    assert bench.asked(NOW_S) == {"c": 12}
    bench.review(NOW_S + WITHIN_S)
    bench.reserve("c", Guarantee(min_pages=8))
    assert bench.victims(NOW_S + WITHIN_S + KILL_S) == ["c"]


def all_overdue_bench() -> Bench:
    """b and c were both asked, and their time is over."""
    bench = short_bench(kill_after_s=KILL_S)
    bench.reserve("c", Guarantee())
    bench.review(NOW_S)
    bench.review(NOW_S + WITHIN_S)
    return bench


def test_one_that_the_kernel_does_not_let_us_kill_is_passed_over_once_and_for_all() -> None:
    bench = all_overdue_bench()
    bench.unkillable = {"b"}
    late_s = NOW_S + WITHIN_S + KILL_S
    assert bench.victims(late_s) == ["b", "c"]
    assert bench.victims(late_s + 100) == []
    assert bench.reclaims.counts.killed == 1, "b was not killed"
    assert bench.state_of("a", late_s)[0] is PromiseState.BROKEN


def test_one_that_does_not_die_of_being_killed_does_not_hold_the_next_one_up_for_ever() -> None:
    bench = all_overdue_bench()
    late_s = NOW_S + WITHIN_S + KILL_S
    assert bench.victims(late_s) == ["b"]
    assert bench.pressure.next_change_s(late_s) is not None
    woken_s, turns = late_s, 0
    while not (victims := bench.victims(woken_s)):
        next_s = bench.pressure.next_change_s(woken_s)
        assert next_s is not None, "it would never be woken"
        woken_s, turns = next_s, turns + 1
    assert (victims, woken_s) == (["c"], late_s + DYING_S)


def test_nobody_within_its_own_min_is_killed() -> None:
    bench = short_bench(kill_after_s=KILL_S)
    assert bench.asked(NOW_S) == {"b": 8}
    bench.ledger.unconfigure("c")
    bench.reserve("b", Guarantee(min_pages=12))
    review = bench.review(NOW_S + KILL_S)
    assert review.victim is None
    assert [request.session_id for request in review.requests] == ["c"], "it is the borrower now"
    assert not bench.reclaims.of("b")


def test_a_borrower_that_nobody_can_talk_to_is_late_like_any_other() -> None:
    bench = short_bench(kill_after_s=KILL_S)
    bench.deaf = {"b", "c"}
    bench.review(NOW_S)
    assert bench.state_of("a", NOW_S) == (PromiseState.PENDING, 8, ())
    bench.review(NOW_S + WITHIN_S)
    assert bench.state_of("a", NOW_S + 2 * WITHIN_S)[0] is PromiseState.BROKEN
    victim = bench.review(NOW_S + KILL_S).victim
    assert victim is not None
    assert victim.session_id == "b"


def test_while_pages_are_made_for_a_promise_those_who_were_asked_are_not_forgotten() -> None:
    """Else the time of who does not give would begin anew whenever the device seems to have enough for a moment."""
    bench = short_bench(kill_after_s=KILL_S)
    assert bench.asked(NOW_S) == {"b": 8}
    bench.give_back("c", 8)
    bench.review(NOW_S + 0.5)
    [entry] = bench.policy.wishes.awarded
    assert [ask.asked_s for ask in bench.reclaims.of("b")] == [NOW_S]
    bench.policy.remove(entry)  # it is answered
    bench.review(NOW_S + 0.6)
    assert not bench.reclaims


def test_an_operator_asks_all_or_one_for_idle_pages_or_for_all() -> None:
    bench = Bench()
    bench.attach("b", "c")
    bench.lend("b", 4)
    bench.lend("c", 4)
    bench.ledger.report_usage("b", Usage(4, 3 * 8))
    bench.pressure.ask_all(NOW_S)
    assert bench.asked(NOW_S) == {"b": 1, "c": 4}
    bench.pressure.ask_to_leave("b")
    assert bench.asked(NOW_S) == {"b": 4}
    bench.pressure.session_ended("b")
    assert not bench.reclaims.of("b")


def test_it_wakes_for_each_thing_that_becomes_due() -> None:
    bench = short_bench(kill_after_s=KILL_S)
    [request] = bench.review(NOW_S).requests
    assert bench.pressure.next_change_s(NOW_S) == NOW_S + WITHIN_S
    bench.reclaims.answered("b", request.reclaim_id, NOW_S + 0.2)
    assert bench.pressure.next_change_s(NOW_S + 0.2) == NOW_S + 0.2 + ASK_AGAIN_S
    bench.review(NOW_S + 4)
    assert bench.pressure.next_change_s(NOW_S + 4.9) == NOW_S + KILL_S


def test_a_hard_min_that_lies_ready_is_held_whatever_is_missing_to_others() -> None:
    bench = Bench()
    bench.attach("a", "b")
    bench.reserve("h", Guarantee(min_pages=4, mode=MinMode.HARD))
    bench.reserve("a", Guarantee(min_pages=8))
    bench.lend("b", 16)
    bench.admit("a", 8, NOW_S)
    bench.review(NOW_S)
    later_s = NOW_S + WITHIN_S + 0.1
    bench.review(later_s)
    assert bench.state_of("a", later_s) == (PromiseState.BROKEN, 8, ("b",))
    assert bench.state_of("h", later_s) == (PromiseState.HELD, 0, ())


def test_who_leaves_is_asked_again_for_what_its_requests_leave_as_they_end() -> None:
    bench = Bench()
    bench.attach("b", "c")
    for session_id in ("b", "c"):
        bench.lend(session_id, 1)
        bench.lend(session_id, 1)
        bench.ledger.report_usage(session_id, Usage(2, 2 * 8))
    bench.pressure.drain()
    assert bench.asked(NOW_S) == {}, "all of it is in use"
    bench.ledger.report_usage("b", Usage(2, 8))
    assert bench.asked(NOW_S + 1) == {"b": 1}
    bench.give_back("b", 1)
    bench.ledger.report_usage("b", Usage(1, 0))
    assert bench.asked(NOW_S + 2) == {"b": 1}
    bench.pressure.end_drain()
    assert not bench.reclaims
    bench.pressure.ask_to_leave("c")
    [request] = bench.review(NOW_S + 3).requests
    assert (request.page_count, request.depth) == (2, Depth.RUNNING)
    bench.reclaims.answered("c", request.reclaim_id, NOW_S + 3)
    assert bench.asked(NOW_S + 3 + ASK_AGAIN_S) == {"c": 2}
    bench.pressure.session_ended("c")
    assert bench.pressure.next_change_s(NOW_S + 4) is None
