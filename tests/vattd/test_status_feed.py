"""What the status page is told: read once for many, in time, and also while the driver or the loop hangs."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.vattd.fake_driver import FakeDriver
from vatt.errors import DriverError
from vattd import loop_call, status_feed, status_reader
from vattd.driver_thread import DriverThread
from vattd.ledger import Ledger
from vattd.page_maps import PageMaps
from vattd.pool import Pool
from vattd.rules import PoolLimits
from vattd.site import Unanswered
from vattd.status import DaemonFacts, DaemonState, Status
from vattd.status_feed import StatusFeed
from vattd.status_json import Reading
from vattd.status_reader import StatusReader
from vattd.stock import Stock
from vattention.vmm.driver import DeviceMemory

PAGE = 4096


class NoSessions(list[Any]):
    """Nobody is attached, nothing was reserved, and there was no vattd before."""

    revision = recovered_total = lost_total = 0

    def in_force(self, name: str) -> None:
        return None


class World:
    """A pool and what reads it, on an event loop in a thread of its own."""

    def __init__(self) -> None:
        self.driver = FakeDriver()
        self.thread = DriverThread()
        self.facts = DaemonFacts(1, 0.0)
        self.loop = asyncio.new_event_loop()
        self._runs = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._runs.start()
        self.do(self._make)
        self.reads = 0
        self.feed = StatusFeed(self.loop, self.status, self._counted)

    async def _make(self) -> None:
        ledger = Ledger(Stock(64, shares_zone=False), page_size_bytes=PAGE, incarnation=1)
        limits = PoolLimits(0, 64 * PAGE, 0)
        self.pool = Pool(ledger, self.driver, self.thread, limits, lambda error: None)
        nobody: Any = NoSessions()
        self.status = Status(self.facts, nobody, self.pool, self.driver.device, nobody, nobody)
        self.reader = StatusReader(self.status, self.pool, PageMaps(ledger))

    async def _counted(self) -> Reading:
        self.reads += 1
        return await self.reader.read()

    def do(self, what: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what(), self.loop).result(20)

    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.feed.status_json().body))

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._runs.join()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.thread.close()


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def test_however_many_ask_at_once_the_loop_reads_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_feed, "FRESH_FOR_S", 3600.0)
    with ThreadPoolExecutor(8) as viewers:
        contents = list(viewers.map(lambda _: world.feed.status_json(), range(40)))
    assert world.reads == 1
    assert len({id(content) for content in contents}) == 1


def test_what_is_no_longer_fresh_is_read_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_feed, "FRESH_FOR_S", 0.0)
    assert world.json()["time"] != world.json()["time"]


def test_a_loop_that_hangs_is_told_as_that_to_all_who_wait_and_forgotten_when_it_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_call, "ANSWER_WITHIN_S", 0.05)
    monkeypatch.setattr(status_feed, "FRESH_FOR_S", 3600.0)
    go_on = threading.Event()
    world.loop.call_soon_threadsafe(go_on.wait)
    with ThreadPoolExecutor(8) as viewers:
        errors = [viewers.submit(world.feed.status_json).exception() for _ in range(8)]
    assert all(isinstance(error, Unanswered) and "has not answered" in str(error) for error in errors)
    assert world.reads == 0
    with pytest.raises(Unanswered, match="has not answered"):
        world.feed.health()
    go_on.set()
    monkeypatch.setattr(loop_call, "ANSWER_WITHIN_S", 20.0)
    assert world.feed.health().body == b"serving\n"
    later = StatusFeed(world.loop, world.status, world.reader.read)
    assert later.status_json().body.startswith(b"{")


def test_a_driver_that_hangs_hides_nothing_but_the_device_s_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_reader, "MEMORY_WITHIN_S", 0.05)
    monkeypatch.setattr(status_feed, "FRESH_FOR_S", 0.0)
    fresh = world.json()
    assert fresh["memory_age_s"] < 20
    go_on, asked = threading.Event(), []

    def hang() -> DeviceMemory:
        asked.append(1)
        go_on.wait()
        return DeviceMemory(5, 4, 3)

    monkeypatch.setattr(world.driver, "memory", hang)
    late = [world.json() for _ in range(3)]
    assert [one["status"]["memory"] for one in late] == [fresh["status"]["memory"]] * 3
    ages_s = [one["memory_age_s"] for one in late]
    assert ages_s == sorted(set(ages_s))
    assert ages_s[0] > fresh["memory_age_s"]
    assert len(asked) == 1  # nothing queues up behind it
    go_on.set()
    monkeypatch.setattr(status_reader, "MEMORY_WITHIN_S", 20.0)
    assert world.json()["status"]["memory"]["free_bytes"] == 4


def test_a_device_whose_memory_was_never_told_is_shown_without(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> DeviceMemory:
        raise DriverError("no", call="memory")

    monkeypatch.setattr(world.driver, "memory", refuse)
    assert world.json()["memory_age_s"] is None


def test_samples_have_no_figure_for_free_memory_that_is_old(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def sample_twice() -> list[int | None]:
        now_s = asyncio.get_running_loop().time()
        world.reader.sample(now_s)
        world.reader.sample(now_s + status_reader.EVERY_S)
        return [one.free_bytes for one in world.reader.timeline.samples(now_s + status_reader.EVERY_S)]

    world.json()
    first, second = world.do(sample_twice)
    assert first is not None
    assert second is None


def test_a_bug_in_reading_is_logged_and_told_as_one(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(world.pool.ledger, "snapshot", lambda: 1 / 0)
    with pytest.raises(Unanswered, match="a bug of vattd's"):
        world.feed.status_json()
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("state", [state for state in DaemonState if state is not DaemonState.SERVING])
def test_health_is_refused_with_the_state_unless_vattd_serves(world: World, state: DaemonState) -> None:
    assert world.feed.health().body == b"serving\n"
    if state is DaemonState.DRAINING:
        world.pool.drain()
    else:
        world.facts.state = state
    with pytest.raises(Unanswered, match=state.value):
        world.feed.health()
