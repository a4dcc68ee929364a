"""Who is asked for pages, how many, and what becomes of those who do not answer."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vattd.reclaim import ASK_AGAIN_S, Ask, Reason, Reclaims, Request
from vattd.share_out import Depth, Holder, level

NOW_S = 1e5 + 0.1  # where adding and subtracting do not always cancel out
WITHIN_S = 1.0
KILL_S = 5.0


def holder(session_id: str, spare_pages: int, *, idle_pages: int = 0, tenant: str = "", weight: int = 1) -> Holder:
    return Holder(session_id, tenant or session_id, weight, spare_pages, spare_pages, idle_pages, listens=True)


def fenced(session_id: str, spare_pages: int) -> Holder:
    return Holder(session_id, session_id, 1, spare_pages, spare_pages, 0, listens=False)


def asked(reclaims: Reclaims, *session_ids: str) -> dict[str, int]:
    return {
        session_id: sum(ask.page_count for ask in reclaims.of(session_id))
        for session_id in session_ids
        if reclaims.of(session_id)
    }


def told(reclaims: Reclaims, now_s: float, **held_pages: int) -> list[Request]:
    return reclaims.take_requests(held_pages, now_s)


@st.composite
def holders(draw: st.DrawFn) -> list[Holder]:
    found = []
    for tenant in range(draw(st.integers(1, 4))):
        weight, spare = draw(st.sampled_from([1, 2, 3, 7, 1000])), draw(st.integers(0, 60))
        for session in range(draw(st.integers(1, 3))):
            held = draw(st.integers(0, 40))
            idle = draw(st.integers(0, held))
            found.append(Holder(f"{tenant}-{session}", str(tenant), weight, spare, held, idle, listens=True))
    return found


@given(holders(), st.integers(0, 120), st.data())
def test_what_is_asked_levels_what_tenants_can_spare(those: list[Holder], page_count: int, data: st.DataObject) -> None:
    """All that is wanted is asked if it is there, of nobody more than it has or its tenant can spare; and no tenant
    gives while another one could that is above it by more than the page that rounds."""
    wanted = Counter({one.session_id: data.draw(st.integers(0, one.held_pages)) for one in those})
    for tenant in {one.tenant for one in those}:  # never more than it can spare
        for one in those:
            if one.tenant == tenant:
                rest = one.spare_pages - sum(wanted[other.session_id] for other in those if other.tenant == tenant)
                wanted[one.session_id] = max(0, wanted[one.session_id] + min(0, rest))
    may_be_asked = {one.session_id for one in those if data.draw(st.booleans())}
    depth = data.draw(st.sampled_from(list(Depth)))
    given_pages = level(page_count, those, wanted, may_be_asked, depth)

    rooms = {}
    for one in those:
        most = one.idle_pages if depth is Depth.IDLE else one.held_pages
        rooms[one.session_id] = max(0, most - wanted[one.session_id]) if one.session_id in may_be_asked else 0
    tenants = {one.tenant: one for one in those}
    spare, room, gave = Counter[str](), Counter[str](), Counter[str]()
    for one in those:
        room[one.tenant] += rooms[one.session_id]
        gave[one.tenant] += given_pages.get(one.session_id, 0)
        spare[one.tenant] -= wanted[one.session_id]
    for name, one in tenants.items():
        spare[name] += one.spare_pages

    assert all(0 < pages <= rooms[session_id] for session_id, pages in given_pages.items())
    assert all(gave[name] <= spare[name] for name in tenants)
    available = sum(min(max(0, spare[name]), room[name]) for name in tenants)
    assert sum(given_pages.values()) == min(page_count, available)
    for name, one in tenants.items():
        if not gave[name]:
            continue
        level_before_last = (spare[name] - gave[name] + 1) / one.weight
        for other_name, other in tenants.items():
            if gave[other_name] < min(spare[other_name], room[other_name]):
                others_level = (spare[other_name] - gave[other_name]) / other.weight
                assert others_level <= level_before_last + 1 / other.weight + 1e-9


def test_the_tenant_with_most_for_its_weight_gives_first() -> None:
    assert level(4, [holder("a", 10), holder("b", 6)], {}, {"a", "b"}, Depth.RUNNING) == {"a": 4}
    heavy = [holder("a", 10, weight=2), holder("b", 6)]
    assert level(1, heavy, {}, {"a", "b"}, Depth.RUNNING) == {"b": 1}


def test_idle_pages_are_asked_for_before_running_ones() -> None:
    reclaims = Reclaims(WITHIN_S, None)
    reclaims.want(Reason.PROMISE, 4, [holder("busy", 20), holder("lazy", 5, idle_pages=3)], NOW_S)
    assert asked(reclaims, "busy", "lazy") == {"busy": 1, "lazy": 3}
    requests = told(reclaims, NOW_S, busy=20, lazy=5)
    assert [(request.session_id, request.depth) for request in requests] == [
        ("busy", Depth.RUNNING),
        ("lazy", Depth.IDLE),
    ]


def test_for_one_that_waits_its_turn_only_idle_pages_are_asked() -> None:
    reclaims = Reclaims(WITHIN_S, None)
    reclaims.want(Reason.QUEUE, 9, [holder("busy", 20, idle_pages=2)], NOW_S)
    assert asked(reclaims, "busy") == {"busy": 2}


def test_what_is_asked_already_is_not_asked_again() -> None:
    reclaims = Reclaims(WITHIN_S, None)
    for _ in range(3):
        reclaims.want(Reason.PROMISE, 4, [holder("a", 10)], NOW_S)
    assert asked(reclaims, "a") == {"a": 4}
    assert len(told(reclaims, NOW_S, a=10)) == 1
    assert told(reclaims, NOW_S, a=10) == []


def test_when_less_is_missing_what_was_asked_last_is_let_off() -> None:
    reclaims = Reclaims(WITHIN_S, None)
    those = [holder("a", 10), holder("b", 10)]
    reclaims.want(Reason.PROMISE, 4, those[:1], NOW_S)
    reclaims.want(Reason.PROMISE, 9, [those[1]], NOW_S + 0.1)  # a has nothing to spare any more
    assert asked(reclaims, "a", "b") == {"b": 9}
    reclaims.want(Reason.PROMISE, 12, those, NOW_S + 0.2)
    assert asked(reclaims, "a", "b") == {"a": 3, "b": 9}
    told(reclaims, NOW_S + 0.2, a=10, b=10)
    reclaims.want(Reason.PROMISE, 10, those, NOW_S + 0.3)
    assert asked(reclaims, "a", "b") == {"a": 1, "b": 9}
    assert [request.session_id for request in told(reclaims, NOW_S + 0.3, a=10, b=10)] == ["a"]


def test_two_sessions_of_a_tenant_are_not_asked_for_the_same_spare_pages() -> None:
    reclaims = Reclaims(WITHIN_S, None)
    first = Holder("first", "t", 1, 6, 20, 0, listens=True)
    second = Holder("second", "t", 1, 6, 10, 0, listens=True)
    reclaims.want(Reason.PROMISE, 6, [first, second], NOW_S)
    assert asked(reclaims, "first") == {"first": 6}
    deaf = Holder("first", "t", 1, 6, 20, 0, listens=False)
    reclaims.want(Reason.PROMISE, 12, [deaf, second], NOW_S)
    assert asked(reclaims, "first", "second") == {"first": 6}


def test_who_does_not_answer_is_passed_over_and_others_are_asked() -> None:
    reclaims = Reclaims(WITHIN_S, None)
    those = [holder("mute", 10), holder("kind", 8)]
    reclaims.want(Reason.PROMISE, 2, those, NOW_S)
    assert asked(reclaims, "mute", "kind") == {"mute": 2}
    told(reclaims, NOW_S, mute=10, kind=8)
    late_s = NOW_S + WITHIN_S
    assert [ask.session_id for ask in reclaims.note_ignored(late_s)] == ["mute"]
    assert reclaims.note_ignored(late_s) == []
    for later_s in (0.0, 1.0, 60.0):
        reclaims.want(Reason.PROMISE, 2, those, late_s + later_s)
        assert asked(reclaims, "mute", "kind") == {"mute": 2, "kind": 2}
        told(reclaims, late_s + later_s, mute=10, kind=8)
    assert reclaims.counts.ignored == 1


def test_who_has_no_more_idle_pages_is_asked_deeper_at_once_and_then_again_a_little_later() -> None:
    reclaims = Reclaims(WITHIN_S, KILL_S)
    those = [holder("a", 10, idle_pages=5)]
    reclaims.want(Reason.PROMISE, 3, those, NOW_S)
    [request] = told(reclaims, NOW_S, a=10)
    assert request.depth is Depth.IDLE
    reclaims.answered("a", request.reclaim_id, NOW_S + 0.1)
    reclaims.want(Reason.PROMISE, 3, those, NOW_S + 0.1)
    [request] = told(reclaims, NOW_S + 0.1, a=10)
    assert (request.page_count, request.depth) == (3, Depth.RUNNING)
    reclaims.answered("a", request.reclaim_id, NOW_S + 0.2)
    reclaims.want(Reason.PROMISE, 3, those, NOW_S + 0.2)
    assert told(reclaims, NOW_S + 0.2, a=10) == []
    again_s = NOW_S + 0.2 + ASK_AGAIN_S
    assert reclaims.next_change_s(NOW_S + 0.2) == again_s
    reclaims.want(Reason.PROMISE, 3, those, again_s)
    [request] = told(reclaims, again_s, a=10)
    assert (request.page_count, request.depth) == (3, Depth.RUNNING)
    assert request.within_s == pytest.approx(WITHIN_S)
    [ask] = reclaims.of("a")
    assert ask.asked_s == NOW_S, "wanted since it was asked first"


def test_an_answer_to_what_was_asked_before_says_nothing_of_what_was_asked_since() -> None:
    reclaims = Reclaims(WITHIN_S, None)
    reclaims.want(Reason.PROMISE, 2, [holder("a", 10)], NOW_S)
    [first] = told(reclaims, NOW_S, a=10)
    reclaims.want(Reason.PROMISE, 5, [holder("a", 10)], NOW_S + 0.1)
    [second] = told(reclaims, NOW_S + 0.1, a=10)
    assert (first.page_count, second.page_count) == (2, 5)
    reclaims.answered("a", first.reclaim_id, NOW_S + 0.2)
    assert all(ask.is_live(NOW_S + 0.2) for ask in reclaims.of("a"))
    reclaims.answered("a", second.reclaim_id, NOW_S + 0.2)
    assert not any(ask.is_live(NOW_S + 0.2) for ask in reclaims.of("a"))


def test_who_always_gives_in_time_is_never_late_however_long_more_is_wanted_of_it() -> None:
    """Each page comes 0.9 s after it was asked for, and the next ones are wanted before."""
    reclaims = Reclaims(WITHIN_S, KILL_S)
    due: list[float] = []
    missing = 0
    for tick in range(400):
        now_s = NOW_S + tick * 0.1
        while due and due[0] <= now_s + 1e-9:
            due.pop(0)
            reclaims.returned("a", 1)
            missing -= 1
        if tick % 4 == 0:
            missing += 1
            due.append(now_s + 0.9)
        reclaims.want(Reason.PROMISE, missing, [holder("a", 50)], now_s)
        told(reclaims, now_s, a=50)
        assert reclaims.note_ignored(now_s) == []
        assert reclaims.to_kill(lambda _: True, now_s) is None
        assert reclaims.promise_state(now_s)[1] == []


def test_who_cannot_be_told_is_asked_last_and_told_when_it_listens() -> None:
    reclaims = Reclaims(WITHIN_S, KILL_S)
    reclaims.want(Reason.PROMISE, 5, [fenced("deaf", 10), holder("a", 3)], NOW_S)
    assert asked(reclaims, "deaf", "a") == {"deaf": 2, "a": 3}
    told(reclaims, NOW_S, deaf=10, a=3)
    reclaims.tell_again("deaf")
    [request] = told(reclaims, NOW_S + 0.5, deaf=10, a=3)
    assert (request.session_id, request.page_count) == ("deaf", 2)
    assert reclaims.to_kill(lambda session_id: session_id == "deaf", NOW_S + KILL_S) is not None


def test_the_one_asked_first_is_killed_and_not_a_moment_late() -> None:
    reclaims = Reclaims(WITHIN_S, KILL_S)
    reclaims.want(Reason.PROMISE, 2, [holder("a", 10)], NOW_S)
    for moment in range(1, 6):
        reclaims.note_ignored(NOW_S + moment)
        reclaims.want(Reason.PROMISE, 2, [holder("a", 10), holder("b", 8)], NOW_S + moment)
    now_s, steps = NOW_S, 0
    while reclaims.to_kill(lambda _: True, now_s) is None:
        next_s = reclaims.next_change_s(now_s)
        assert next_s is not None, "it would never be woken"
        now_s, steps = next_s, steps + 1
    victim = reclaims.to_kill(lambda _: True, now_s)
    assert victim is not None
    assert (victim.session_id, now_s) == ("a", NOW_S + KILL_S)
    assert reclaims.to_kill(lambda session_id: session_id != "a", now_s) is None


def test_who_is_to_give_what_it_runs_with_is_not_asked_for_what_others_would_like() -> None:
    reclaims = Reclaims(WITHIN_S, None)
    reclaims.want(Reason.PROMISE, 6, [holder("a", 20)], NOW_S)
    reclaims.want(Reason.QUEUE, 4, [holder("a", 20, idle_pages=4), holder("b", 20, idle_pages=1)], NOW_S)
    assert asked(reclaims, "a", "b") == {"a": 6, "b": 1}
    [request, _] = told(reclaims, NOW_S, a=20, b=20)
    reclaims.answered("a", request.reclaim_id, NOW_S)
    reclaims.want(Reason.QUEUE, 4, [holder("a", 20, idle_pages=4), holder("b", 20, idle_pages=1)], NOW_S)
    assert asked(reclaims, "a", "b") == {"a": 9, "b": 1}


def test_idle_pages_that_an_operator_would_like_are_asked_for_when_what_must_come_has_come() -> None:
    """Running requests do not end for them."""
    reclaims = Reclaims(WITHIN_S, None)
    reclaims.want_all(holder("a", 20), Reason.OPERATOR, 4, NOW_S)
    reclaims.want(Reason.PROMISE, 6, [holder("a", 20)], NOW_S)
    [request] = told(reclaims, NOW_S, a=20)
    assert (request.page_count, request.depth) == (6, Depth.RUNNING)
    late_s = NOW_S + 3 * WITHIN_S
    assert [ask.reason for ask in reclaims.note_ignored(late_s)] == [Reason.PROMISE], "it was told of no other"
    reclaims.answered("a", request.reclaim_id, late_s)
    [request] = told(reclaims, late_s, a=14)
    assert (request.page_count, request.depth) == (4, Depth.IDLE)
    assert request.within_s == pytest.approx(WITHIN_S)
    assert told(reclaims, late_s, a=14) == [], "once is enough"


def test_an_operators_wish_that_nobody_heard_is_forgotten_when_its_time_is_over() -> None:
    """Else status would show the session as overdue for ever."""
    reclaims = Reclaims(WITHIN_S, None)
    reclaims.want_all(fenced("a", 10), Reason.OPERATOR, 3, NOW_S)
    told(reclaims, NOW_S, a=10)
    assert reclaims.is_waiting(Reason.OPERATOR, NOW_S)
    assert [ask.session_id for ask in reclaims.note_ignored(NOW_S + WITHIN_S)] == ["a"]
    assert not reclaims


@given(st.floats(0.0, 1e9), st.floats(0.001, 1e4))
def test_when_it_wakes_to_kill_the_time_is_over(asked_s: float, kill_after_s: float) -> None:
    reclaims = Reclaims(kill_after_s / 2, kill_after_s)
    reclaims.want(Reason.PROMISE, 1, [holder("a", 10)], asked_s)
    now_s: float | None = asked_s
    for _ in range(4):
        assert now_s is not None
        if reclaims.to_kill(lambda _: True, now_s):
            return
        now_s = reclaims.next_change_s(now_s)
    raise AssertionError("nobody is killed")


def test_nobody_is_killed_where_the_operator_did_not_choose_so() -> None:
    reclaims = Reclaims(WITHIN_S, None)
    reclaims.want(Reason.PROMISE, 2, [holder("a", 10)], NOW_S)
    assert reclaims.to_kill(lambda _: True, NOW_S + 1e9) is None


def test_returns_count_for_the_first_reason_and_for_what_was_asked_first() -> None:
    reclaims = Reclaims(WITHIN_S, None)
    reclaims.want(Reason.QUEUE, 2, [holder("a", 10, idle_pages=10)], NOW_S)
    reclaims.want(Reason.PROMISE, 3, [holder("a", 10)], NOW_S)
    reclaims.want(Reason.PROMISE, 5, [holder("a", 10)], NOW_S + 0.1)
    reclaims.returned("a", 4)
    left = [(ask.reason, ask.page_count, ask.asked_s) for ask in reclaims.of("a")]
    assert left == [(Reason.PROMISE, 1, NOW_S + 0.1), (Reason.QUEUE, 2, NOW_S)]
    reclaims.returned("a", 3)
    assert not reclaims
    assert (reclaims.counts.asked, reclaims.counts.answered, reclaims.counts.asked_pages) == (3, 3, 7)


def test_what_an_operator_asked_for_ends_with_the_answer_or_with_the_last_page() -> None:
    reclaims = Reclaims(WITHIN_S, None)
    reclaims.want_all(holder("a", 10), Reason.OPERATOR, 10, NOW_S)
    [request] = told(reclaims, NOW_S, a=10)
    told(reclaims, NOW_S, a=4)
    assert asked(reclaims, "a") == {"a": 4}
    reclaims.answered("a", request.reclaim_id, NOW_S)
    assert not reclaims
    reclaims.want_all(holder("a", 4), Reason.OPERATOR, 4, NOW_S)
    told(reclaims, NOW_S, a=0)
    assert not reclaims


def test_nothing_is_wanted_any_more_when_the_reason_is_gone_or_the_session() -> None:
    reclaims = Reclaims(WITHIN_S, None)
    reclaims.want(Reason.PROMISE, 2, [holder("a", 10)], NOW_S)
    reclaims.want(Reason.PROMISE, 0, [], NOW_S)
    assert not reclaims
    assert told(reclaims, NOW_S, a=10) == []
    reclaims.want(Reason.LIMIT, 2, [holder("a", 10)], NOW_S)
    reclaims.ended("a")
    assert not reclaims


def test_an_ask_is_live_until_its_time_is_over_or_it_is_answered() -> None:
    ask = Ask("a", Reason.PROMISE, Depth.RUNNING, 1, NOW_S, NOW_S + WITHIN_S)
    assert ask.is_live(NOW_S)
    assert not ask.is_live(NOW_S + WITHIN_S)
    ask.answered_s = NOW_S
    assert not ask.is_live(NOW_S)
