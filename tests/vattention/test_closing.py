"""Closing a KV cache while other threads use it: they are told, and nothing stays mapped."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.vattention.host_pages import HostPages
from tests.vattention.test_kvcache_threads import eager_switching
from tests.vattention.token_values import check, spec_of, write
from vatt.errors import Closed, DriverError, InvalidRequest
from vatt.pages import Extent
from vatt.v1 import vatt_pb2
from vattention.kvcache import KVCache
from vattention.layout import Layout
from vattention.mapper import Mapper
from vattention.marks import Mark
from vattention.session import Session

WAIT_S = 10.0
FUSED = spec_of(Layout.FUSED)
STRESS_ROUNDS = 100


class Gate:
    """Holds up who comes through, until the test lets it on."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def pass_through(self) -> None:
        self.reached.set()
        assert self.open.wait(WAIT_S)


class TestMapper(Mapper):
    """A mapper whose calls the test holds up, or has refused, counted down from `refuse_in`."""

    __test__ = False

    gate: Gate | None = None
    refuse_in = 0

    def map(self, address: int, extents: Sequence[Extent]) -> None:
        if self.gate is not None:
            self.gate.pass_through()
        super().map(address, extents)

    def unmap(self, address: int, page_count: int) -> list[Extent]:
        self._count_down("unmap")
        return super().unmap(address, page_count)

    def free(self, reserved: Any) -> None:
        self._count_down("free")
        super().free(reserved)

    def _count_down(self, call: str) -> None:
        self.refuse_in -= 1
        if self.refuse_in == 0:
            raise DriverError("the driver refuses", call=call)


@pytest.fixture
def host() -> Iterator[HostPages]:
    host = HostPages(mapper_of=TestMapper)
    yield host
    host.close()
    assert (host.leased_pages, host.mapper.mapped_pages) == (0, 0)


def mapper_of(host: HostPages) -> TestMapper:
    assert isinstance(host.mapper, TestMapper)
    return host.mapper


@contextmanager
def thread_of(action: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Another thread does it; what it raised is in the list once the block is over."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001  looked at in the test's thread
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield errors
    thread.join(WAIT_S)
    assert not thread.is_alive()


def when_slots_have_ended(cache: KVCache, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """The cache announces that to its background, with no lock held."""
    wake = cache._keeper.wake

    def woken() -> None:
        wake()
        action()

    monkeypatch.setattr(cache._keeper, "wake", woken)


USES: dict[str, Callable[[KVCache], object]] = {
    "acquire_slot": lambda cache: cache.acquire_slot(),
    "acquire_slot that fits": lambda cache: cache.acquire_slot(50),
    "admit_slot": lambda cache: cache.admit_slot(50),
    "fork_slot": lambda cache: cache.fork_slot(0),
    "free_slot": lambda cache: cache.free_slot(0),
    "grow": lambda cache: cache.grow(0, 50),
    "grow to more": lambda cache: cache.grow(0, 500),
    "step": lambda cache: cache.step([101, 50, 0, 0]),
    "step that begins a request": lambda cache: cache.step([100, 50, 30, 0]),
    "shrink": lambda cache: cache.shrink(0, 10),
    "length": lambda cache: cache.length(0),
}


@pytest.mark.parametrize("use", USES)
def test_from_when_closing_begins_no_slot_is_used_any_more(use: str, host: HostPages) -> None:
    gate = Gate()
    cache = KVCache(host, FUSED, fence=gate.pass_through)
    cache.step([100, 50, 0, 0])
    with thread_of(cache.close) as close_errors:
        assert gate.reached.wait(WAIT_S)  # the slots have ended; the device has not
        with thread_of(lambda: USES[use](cache)) as errors:
            gate.open.set()
        assert [type(error) for error in errors] == [Closed]
    assert close_errors == []


def test_a_slot_that_another_thread_frees_meanwhile_does_not_stop_the_close(
    host: HostPages, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = KVCache(host, FUSED, background=False)
    cache.step([100, 50, 0, 0])
    raised: list[BaseException] = []

    def free_the_other() -> None:
        monkeypatch.undo()
        with thread_of(lambda: cache.free_slot(1)) as errors:
            pass
        raised.extend(errors)

    when_slots_have_ended(cache, monkeypatch, free_the_other)
    cache.close()
    assert [type(error) for error in raised] == [Closed]


UNDER_WAY: dict[str, Callable[[KVCache], object]] = {
    "admit_slot": lambda cache: cache.admit_slot(200),
    "fork_slot": lambda cache: cache.fork_slot(0),
    "grow": lambda cache: cache.grow(0, 500),
    "grow_many": lambda cache: cache.grow_many({0: 300, 1: 300}),
    "step": lambda cache: cache.step([300, 0, 200, 0]),
    "step within shared pages": lambda cache: cache.step([100, 90, 30, 33]),
    "shrink within shared pages": lambda cache: cache.shrink(2, 33),
}


@pytest.mark.parametrize("use", UNDER_WAY)
def test_what_is_mapped_while_closing_begins_is_given_back_too(
    use: str, host: HostPages, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = KVCache(host, FUSED, background=False)
    cache.step([100, 90, 0, 0])
    assert cache.fork_slot(0) == 2
    gate, ended = Gate(), threading.Event()
    mapper_of(host).gate = gate
    when_slots_have_ended(cache, monkeypatch, ended.set)
    with thread_of(lambda: UNDER_WAY[use](cache)) as errors:
        assert gate.reached.wait(WAIT_S)
        with thread_of(cache.close) as close_errors:
            assert ended.wait(WAIT_S)
            gate.open.set()
    assert [type(error) for error in errors] == [Closed], errors
    assert close_errors == []
    assert host.mapper.mapped_pages == 0


def test_a_growth_whose_slot_is_freed_meanwhile_leaves_the_table_as_the_mappings_are(
    host: HostPages,
) -> None:
    gate = Gate()
    with KVCache(host, FUSED, background=False) as cache:
        cache.keep_finished(1.0)
        cache.grow(cache.acquire_slot(), 100)
        mapper_of(host).gate = gate
        with thread_of(lambda: cache.grow(0, 500)) as errors:
            assert gate.reached.wait(WAIT_S)
            cache.free_slot(0)
            gate.open.set()
        assert [type(error) for error in errors] == [InvalidRequest]
        mapped = int(cache._rows.arithmetic.pool_pages(cache._rows.table.mapped).sum())
        assert mapped == host.mapper.mapped_pages == cache._behind.held_pages


def test_a_fork_to_a_slot_that_another_thread_grows_meanwhile_is_refused(
    host: HostPages, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = threading.Event()
    with KVCache(host, spec_of(Layout.FUSED, max_batch_size=2), background=False) as cache:
        cache.step([100, 100])
        cache.step([100, 0])  # and the pages of slot 1 are kept
        claim = cache._rows.table.claim

        def claim_and_tell(number: int) -> Mark:
            mark = claim(number)
            claimed.set()
            return mark

        with ExitStack() as joined:
            with cache._rows.mapping():
                monkeypatch.setattr(cache._rows.table, "claim", claim_and_tell)
                errors = joined.enter_context(thread_of(lambda: cache.fork_slot(0)))
                assert claimed.wait(WAIT_S)
                cache.grow(1, 50)
        assert [type(error) for error in errors] == [InvalidRequest]
        assert cache._rows.table.used == [0]


def test_a_close_that_the_driver_refuses_leaves_a_cache_that_goes_on(host: HostPages) -> None:
    """At whichever of its calls that is."""
    mapper = mapper_of(host)
    cache = KVCache(host, FUSED)
    for refuse_in in range(1, 100):
        lengths = [100, 50, 0, 0]
        cache.step(lengths)
        cache.fork_slot(0)
        write(cache, 0, 1, 0, 100)
        assert cache.settle()
        mapper.refuse_in = refuse_in
        try:
            cache.close()
        except DriverError:
            pass
        else:
            break
        mapper.refuse_in = 0
        assert cache._rows.table.used == []
        slot = cache.admit_slot(200)
        write(cache, slot, 2, 0, 200)
        check(cache, slot, 2, 200)
        cache.free_slot(slot)
        announced = cache.acquire_slot(900)
        assert cache.settle()  # the background goes on as well
        assert cache.capacity(announced) >= 900
        cache.free_slot(announced)
    mapper.refuse_in = 0
    assert refuse_in > 3  # one of them was the range itself
    with pytest.raises(Closed):
        cache.acquire_slot()


def test_a_request_that_waits_for_pages_is_told_when_its_session_is_closed(
    vattd_socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session.connect("closing", socket_dir=vattd_socket_dir)
    cache = KVCache(session, spec_of(Layout.FUSED, max_context_length=100_000))
    cache.admit_slot(60_000)  # more than half of the pool
    lease_pages, waits = session._client._stub.LeasePages, threading.Event()

    def lease(request: vatt_pb2.LeasePagesRequest, timeout: float) -> vatt_pb2.LeasePagesResponse:
        if request.HasField("wait"):
            waits.set()
        answer: vatt_pb2.LeasePagesResponse = lease_pages(request, timeout=timeout)
        return answer

    monkeypatch.setattr(session._client._stub, "LeasePages", lease)
    with thread_of(lambda: cache.admit_slot(90_000, wait_s=600.0)) as errors:
        assert waits.wait(WAIT_S)
        session.close()
    assert [type(error) for error in errors] == [Closed], errors
    assert (session.leased_pages, session.mapper.mapped_pages) == (0, 0)


class Worker:
    """A thread that does whatever comes to it until it is told that the cache is closed."""

    def __init__(self, cache: KVCache, seed: int, began: threading.Barrier) -> None:
        self.cache, self.random, self.began = cache, random.Random(seed), began
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.began.wait(WAIT_S)
        try:
            while True:
                with suppress(InvalidRequest):  # for a slot that another one has freed
                    self._move()
        except Closed:
            pass
        except BaseException as failure:  # noqa: BLE001  raised in the test's thread
            self.failure = failure

    def _move(self) -> None:
        cache, slot, tokens = self.cache, self.random.randrange(4), self.random.choice([1, 60, 300])
        match self.random.randrange(7):
            case 0:
                cache.admit_slot(tokens)
            case 1:
                cache.acquire_slot(tokens)
            case 2:
                cache.grow(slot, tokens)
            case 3:
                cache.free_slot(slot)
            case 4:
                cache.fork_slot(slot)
            case 5:
                cache.shrink(slot, 0)
            case _:
                lengths = [0, 0, 0, 0]
                lengths[slot] = tokens
                cache.step(lengths)


@pytest.mark.parametrize("layout", [Layout.FUSED, Layout.PER_LAYER], ids=lambda layout: layout.value)
def test_a_close_at_any_moment_ends_what_other_threads_do_and_gets_every_page_back(layout: Layout) -> None:
    for round_number in range(STRESS_ROUNDS):
        host = HostPages()
        cache = KVCache(host, spec_of(layout))
        began = threading.Barrier(4 + 1)
        workers = [Worker(cache, 4 * round_number + at, began) for at in range(4)]
        with eager_switching():
            began.wait(WAIT_S)
            for _ in range(round_number % 20 * 10):
                cache.needed_pages([10, 10, 10, 10])  # so that it comes at another moment each time
            cache.close()
            for worker in workers:
                worker.thread.join(WAIT_S)
                assert not worker.thread.is_alive()
        failures = [worker.failure for worker in workers if worker.failure is not None]
        if failures:
            raise failures[0]
        assert host.mapper.mapped_pages == 0
        host.pages.close()
        assert host.leased_pages == 0
        host.close()
