"""What happened is kept in order, counted, and told to watchers without waiting for them."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from vattd.event_feed import MAX_UNREAD, EventFeed
from vattd.happenings import KEPT_FREQUENT, KEPT_OTHERS, EndCause, Happening, Happenings, Kind


def new_happenings() -> Happenings:
    return Happenings(clock=itertools.count(100.0).__next__)


async def read_all(feed: EventFeed) -> list[tuple[Happening, int]]:
    return [one async for one in feed.read(follow=False)]


@given(st.lists(st.sampled_from(Kind), max_size=60), st.integers(0, 70))
def test_what_is_kept_comes_back_in_order_and_is_counted(kinds: list[Kind], after: int) -> None:
    happenings = new_happenings()
    for kind in kinds:
        happenings.note(kind)
    kept = happenings.since(after)
    assert [what.kind for what in kept] == kinds[after:]
    assert [what.sequence for what in kept] == list(range(after + 1, len(kinds) + 1))
    assert happenings.counts.total() == happenings.last_sequence == len(kinds)


def test_leases_and_asks_push_out_each_other_alone() -> None:
    happenings = new_happenings()
    happenings.note(Kind.SESSION_ATTACHED)
    for _ in range(3 * KEPT_FREQUENT):
        happenings.note(Kind.LEASE_GRANTED)
    kept = happenings.since(0)
    assert kept[0].kind is Kind.SESSION_ATTACHED
    assert len(kept) == 1 + KEPT_FREQUENT
    assert kept[-1].sequence == happenings.last_sequence
    for _ in range(KEPT_OTHERS):
        happenings.note(Kind.RECLAIM_IGNORED)
    assert len(happenings.since(0)) == KEPT_FREQUENT + KEPT_OTHERS


def test_ends_are_counted_by_cause() -> None:
    happenings = new_happenings()
    happenings.note_end(EndCause.KILLED, tenant="a", session_id="s", page_count=3)
    assert happenings.ends == {EndCause.KILLED: 1}
    (end,) = happenings.since(0)
    assert (end.kind, end.reason, end.page_count) == (Kind.SESSION_ENDED, "killed", 3)


def test_a_feed_goes_from_the_past_to_the_present_and_leaves_small_leases_out() -> None:
    async def watch() -> None:
        happenings = new_happenings()
        happenings.note(Kind.LEASE_GRANTED, page_count=9)
        happenings.note(Kind.SESSION_ATTACHED)
        feed = EventFeed(happenings, after=0, min_lease_pages=10)
        happenings.note(Kind.LEASE_REFUSED, page_count=9)
        happenings.note(Kind.LEASE_GRANTED, page_count=10)
        assert [(what.sequence, missed) for what, missed in await read_all(feed)] == [(2, 0), (4, 0)]
        reading = asyncio.ensure_future(anext(feed.read(follow=True)))
        await asyncio.sleep(0)
        happenings.note(Kind.DRAIN_BEGAN)
        assert (await reading)[0].kind is Kind.DRAIN_BEGAN
        feed.close()
        happenings.note(Kind.DRAIN_ENDED)
        assert [one async for one in feed.read(follow=True)] == []

    asyncio.run(watch())


def test_a_feed_that_nobody_reads_keeps_the_newest_and_says_how_many_it_lost() -> None:
    async def watch() -> None:
        happenings = new_happenings()
        feed = EventFeed(happenings, after=0, min_lease_pages=0)
        for _ in range(MAX_UNREAD + 7):
            happenings.note(Kind.LEASE_GRANTED)
        read = await read_all(feed)
        assert len(read) == MAX_UNREAD
        assert read[0] == (read[0][0], 7)
        assert sum(missed for _, missed in read) == 7
        assert read[-1][0].sequence == happenings.last_sequence

    asyncio.run(watch())


def test_the_latest_for_people_has_no_granted_leases_and_no_kind_drowns_the_others() -> None:
    happenings = new_happenings()
    for number in range(100):
        happenings.note(Kind.SESSION_ATTACHED, session_id=f"s{number}")
        happenings.note(Kind.SESSION_ENDED, session_id=f"s{number}")
    for _ in range(200):
        happenings.note(Kind.LEASE_GRANTED)
        happenings.note(Kind.LEASE_REFUSED)
        happenings.note(Kind.RECLAIM_ASKED)
    latest = happenings.latest(30)
    assert [what.sequence for what in latest] == sorted((what.sequence for what in latest), reverse=True)
    assert latest[0].sequence == happenings.last_sequence
    assert Counter(what.kind for what in latest) == {
        Kind.LEASE_REFUSED: 10,
        Kind.RECLAIM_ASKED: 10,
        Kind.SESSION_ENDED: 5,
        Kind.SESSION_ATTACHED: 5,
    }
    assert latest[-1].session_id == "s95"
