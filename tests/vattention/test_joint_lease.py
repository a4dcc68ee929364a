"""Pages on several devices: all or none, and nobody waits while holding."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vatt.errors import Draining, InvalidRequest, LimitExceeded, PoolExhausted, VattError, WaitHopeless
from vatt.pages import Extent, FreeExtents, page_count_of
from vattention.joint_lease import FIRST_PAUSE_S, LONGEST_PAUSE_S, lease_on_all
from vattention.page_source import LeasePurpose

JOIN_S = 30.0


class Devices:
    """Pools by UUID; threads lease from them. A lease that waits does so until the pages are there or time is over."""

    def __init__(self, **page_counts: int) -> None:
        self.free = {uuid: FreeExtents([Extent(0, count)]) for uuid, count in page_counts.items()}
        self.changed = threading.Condition()
        self.holds: Counter[int] = Counter()  # by thread
        self.asked: list[str] = []
        self.refusal: dict[str, VattError] = {}

    def sessions(self, *uuids: str) -> list[FakeSession]:
        return [FakeSession(self, uuid) for uuid in uuids]

    def page_counts(self) -> dict[str, int]:
        return {uuid: free.page_count for uuid, free in self.free.items()}


class FakeSession:
    def __init__(self, devices: Devices, device_uuid: str) -> None:
        self.devices, self.device_uuid = devices, device_uuid
        self.refuses_at_once = False

    def lease(
        self,
        page_count: int,
        *,
        min_page_count: int = 0,
        purpose: LeasePurpose = LeasePurpose.GROW,
        wait_s: float = 0.0,
    ) -> list[Extent]:
        assert purpose is LeasePurpose.ADMIT
        devices, free = self.devices, self.devices.free[self.device_uuid]
        with devices.changed:
            devices.asked.append(self.device_uuid)
            if self.device_uuid in devices.refusal:
                raise devices.refusal[self.device_uuid]
            if wait_s:
                assert devices.holds[threading.get_ident()] == 0, "it waits while it holds"
                devices.changed.wait_for(lambda: free.page_count >= page_count, wait_s)
            if free.page_count < page_count or (self.refuses_at_once and not wait_s):
                raise PoolExhausted(page_count, free.page_count)
            devices.holds[threading.get_ident()] += page_count
            return free.take(page_count)

    def give_back(self, extents: Sequence[Extent]) -> None:
        with self.devices.changed:
            for extent in extents:
                self.devices.free[self.device_uuid].give_back(extent)
            self.devices.holds[threading.get_ident()] -= page_count_of(extents)
            self.devices.changed.notify_all()


def test_pages_come_in_the_order_of_the_sessions_and_are_asked_for_in_that_of_the_devices() -> None:
    devices = Devices(a=10, b=20, c=30)
    for uuid, free in devices.free.items():  # so that the answers differ
        free.take({"a": 1, "b": 2, "c": 3}[uuid])
    held = lease_on_all(devices.sessions("c", "a", "b"), 5)
    assert [extents[0].first for extents in held] == [3, 1, 2]
    assert devices.asked == ["a", "b", "c"]
    assert lease_on_all([], 5) == []


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 20), min_size=1), st.integers(1, 20))
def test_all_devices_lend_or_none_does(page_counts: dict[str, int], page_count: int) -> None:
    devices = Devices(**page_counts)
    sessions = devices.sessions(*reversed(page_counts))
    if min(page_counts.values()) < page_count:
        with pytest.raises(PoolExhausted):
            lease_on_all(sessions, page_count)
        assert devices.page_counts() == page_counts
    else:
        held = lease_on_all(sessions, page_count)
        assert [page_count_of(extents) for extents in held] == [page_count] * len(sessions)


@pytest.mark.parametrize("refusal", [LimitExceeded(9, 1), WaitHopeless(9, 1), Draining("drained")], ids=repr)
def test_what_waiting_does_not_help_against_is_raised_at_once(refusal: VattError) -> None:
    devices = Devices(a=10, b=10)
    devices.refusal["b"] = refusal
    with pytest.raises(type(refusal)):
        lease_on_all(devices.sessions("a", "b"), 5, wait_s=3600.0)
    assert devices.page_counts() == {"a": 10, "b": 10}


def test_a_wait_ends_with_its_time() -> None:
    """In a time of the test's: each look at the clock takes a second."""
    devices, now_s = Devices(a=10, b=10), [0.0]
    devices.free["b"].take(6)

    def clock() -> float:
        now_s[0] += 1.0
        return now_s[0]

    with pytest.raises(PoolExhausted):
        lease_on_all(devices.sessions("a", "b"), 5, wait_s=2.5, clock=clock, sleep=lambda _: None)
    assert devices.page_counts() == {"a": 10, "b": 4}


class ChasedDevices(Devices):
    """Somebody else always has what the caller does not wait for."""

    def __init__(self) -> None:
        super().__init__(a=10, b=10)
        self.now_s = 0.0
        self.pauses_s: list[float] = []

    def sleep(self, pause_s: float) -> None:
        assert self.holds[threading.get_ident()] == 0
        self.pauses_s.append(pause_s)
        self.now_s += pause_s

    def lease_on_all(self, wait_s: float, random: Random) -> list[list[Extent]]:
        sessions = self.sessions("a", "b")
        for session in sessions:
            session.refuses_at_once = True
        return lease_on_all(sessions, 5, wait_s=wait_s, clock=lambda: self.now_s, sleep=self.sleep, random=random)


def test_pauses_between_tries_grow_up_to_a_limit_and_none_is_longer_than_the_time_that_is_left() -> None:
    devices, wait_s = ChasedDevices(), 20.0
    with pytest.raises(PoolExhausted):
        devices.lease_on_all(wait_s, Random(1))
    assert devices.now_s == pytest.approx(wait_s)
    expected_s = FIRST_PAUSE_S
    for pause_s in devices.pauses_s[:-1]:
        assert expected_s / 2 <= pause_s <= expected_s
        expected_s = min(2 * expected_s, LONGEST_PAUSE_S)
    assert max(devices.pauses_s) > LONGEST_PAUSE_S / 2
    assert devices.page_counts() == {"a": 10, "b": 10}


def test_two_callers_do_not_pause_equally_long() -> None:
    pauses_s = []
    for seed in (1, 2):
        devices = ChasedDevices()
        with pytest.raises(PoolExhausted):
            devices.lease_on_all(1.0, Random(seed))
        pauses_s.append(devices.pauses_s)
    assert not set(pauses_s[0]) & set(pauses_s[1])


def test_two_sessions_of_one_device_are_refused() -> None:
    devices = Devices(a=10, b=10)
    with pytest.raises(InvalidRequest, match="device b"):
        lease_on_all(devices.sessions("b", "a", "b"), 5, wait_s=3600.0)
    assert devices.asked == []


@pytest.mark.parametrize("page_count", [0, -1, 1.5, True])
def test_a_lease_of_no_pages_is_refused(page_count: Any) -> None:
    for sessions in (Devices(a=1).sessions("a"), []):
        with pytest.raises(InvalidRequest):
            lease_on_all(sessions, page_count)


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(5, 12), min_size=2),
    st.lists(st.integers(1, 5), min_size=2, max_size=3),
)
def test_askers_in_whatever_order_never_wait_for_each_other_and_hold_nothing_in_the_end(
    page_counts: dict[str, int], wanted: list[int]
) -> None:
    devices = Devices(**page_counts)
    failures: list[BaseException] = []

    def ask(page_count: int, uuids: list[str]) -> None:
        sessions = devices.sessions(*uuids)
        try:
            for _ in range(5):
                held = lease_on_all(sessions, page_count, wait_s=JOIN_S, sleep=lambda _: None)
                for session, extents in zip(sessions, held, strict=True):
                    session.give_back(extents)
        except BaseException as error:  # noqa: BLE001  raised below, in the test's thread
            failures.append(error)

    orders = [sorted(page_counts, reverse=at % 2 == 1) for at in range(len(wanted))]
    threads = [threading.Thread(target=ask, args=asker, daemon=True) for asker in zip(wanted, orders, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(JOIN_S)
        assert not thread.is_alive()
    if failures:
        raise failures[0]
    assert devices.page_counts() == page_counts


def test_a_wait_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        lease_on_all(Devices(a=1).sessions("a"), 1, wait_s=-1.0)
