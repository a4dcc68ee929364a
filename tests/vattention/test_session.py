"""Sessions with a vattd for host memory."""

from __future__ import annotations

import functools
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from tests.daemon import Vattd, pages_of
from tests.vattention.conftest import POOL_BYTES
from tests.vattention.failed_call import FailedCall
from vatt.errors import (
    Closed,
    DaemonUnreachable,
    DriverError,
    InvalidRequest,
    LimitExceeded,
    PoolExhausted,
    SessionFenced,
    SessionUnknown,
    VattError,
)
from vatt.pages import Extent, page_count_of
from vatt.sockets import find_daemon
from vatt.usage import Usage
from vatt.v1 import vatt_pb2, vatt_pb2_grpc
from vattention.attach_stream import AttachStream
from vattention.engine_client import Grant
from vattention.kvcache import KVCache
from vattention.layout import KVCacheSpec, Layout
from vattention.page_source import LeasePurpose
from vattention.session import Session, SessionState

WAIT_S = 10.0
SPEC = KVCacheSpec(2, 2, 64, torch.float32, max_batch_size=4, max_context_length=4096)


@pytest.fixture
def session(vattd_socket_dir: Path) -> Iterator[Session]:
    with Session.connect("session-tests", socket_dir=vattd_socket_dir, client_name="tests") as session:
        yield session


def status(socket_dir: Path) -> vatt_pb2.GetStatusResponse:
    with grpc.insecure_channel(f"unix:{find_daemon([socket_dir], None).admin}") as channel:
        return vatt_pb2_grpc.AdminServiceStub(channel).GetStatus(vatt_pb2.GetStatusRequest(), timeout=WAIT_S)


def pages_leased(socket_dir: Path, session: Session) -> int:
    """By vattd's word."""
    for row in status(socket_dir).sessions:
        if row.session_id == session.session_id:
            return row.leased_bytes // session.page_size_bytes
    return 0


def break_stream(session: Session) -> None:
    """As a broken connection would: the stream ends under the session."""
    stream = session._connection.stream
    stream._call.cancel()
    stream._thread.join(WAIT_S)


def test_pages_are_leased_imported_and_given_back(session: Session, vattd_socket_dir: Path) -> None:
    pages = session.lease(10)
    assert page_count_of(pages) == session.leased_pages == pages_leased(vattd_socket_dir, session) == 10
    session.give_back(pages)
    assert session.leased_pages == pages_leased(vattd_socket_dir, session) == 0
    session.give_back(pages)  # a repeat does no harm
    session.give_back([Extent(1 << 30, 5)])


def test_a_lease_that_makes_no_sense_is_refused(session: Session) -> None:
    calls: list[Callable[[], object]] = [
        lambda: session.lease(0),
        lambda: session.lease(2, min_page_count=3),
        lambda: session.lease(2, min_page_count=-1),
        lambda: session.lease(1.5),  # type: ignore[arg-type]
        lambda: session.lease(True),
        lambda: session.lease(2, min_page_count="1"),  # type: ignore[arg-type]
        lambda: session.lease(1, wait_s=1.0),
        lambda: session.lease(1, purpose=LeasePurpose.ADMIT, wait_s="1"),  # type: ignore[arg-type]
        *(
            functools.partial(session.lease, 1, purpose=LeasePurpose.ADMIT, wait_s=wait_s)
            for wait_s in (-1.0, 3601.0, float("inf"), float("nan"))
        ),
    ]
    for call in calls:
        with pytest.raises(InvalidRequest):
            call()


def test_who_attaches_and_where_must_make_sense(vattd_socket_dir: Path) -> None:
    for tenant in (5, None):
        with pytest.raises(InvalidRequest, match="tenant"):
            Session.connect(tenant, socket_dir=vattd_socket_dir)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="socket_dir"):
        Session.connect("tests", socket_dir=5)  # type: ignore[arg-type]
    with Session.connect("tests", socket_dir=str(vattd_socket_dir)) as session:
        assert session.state is SessionState.ATTACHED


def test_a_session_knows_the_pools_limit_and_vattd_its_last_word_on_usage(
    session: Session, vattd_socket_dir: Path
) -> None:
    assert session.pool_pages == POOL_BYTES // session.page_size_bytes
    session.pages.close()  # it would have a word too
    session.report_usage(Usage(token_bytes=1))
    session.report_usage(Usage(0, 2, 3, 4, 5))
    [row] = [row for row in status(vattd_socket_dir).sessions if row.session_id == session.session_id]
    said = (row.token_bytes, row.static_reservation_bytes, row.paged16_bytes, row.paged256_bytes)
    assert (row.mapped_bytes, *said) == (0, 2, 3, 4, 5)


def test_more_than_the_pool_is_refused_and_as_much_as_there_is_can_be_had(session: Session) -> None:
    pool_pages = POOL_BYTES // session.page_size_bytes
    pages = session.lease(pool_pages // 2)
    with pytest.raises(PoolExhausted):
        session.lease(pool_pages * 3 // 4)
    rest = session.lease(pool_pages * 3 // 4, min_page_count=1)
    assert 1 <= page_count_of(rest) <= pool_pages // 2
    session.give_back(pages + rest)


def test_a_lease_larger_than_one_request_is_asked_for_in_several(session: Session, vattd_socket_dir: Path) -> None:
    session._connection.attached.max_pages_per_lease = 7
    pages = session.lease(30)
    assert page_count_of(pages) == 30
    pool_pages = POOL_BYTES // session.page_size_bytes
    with pytest.raises(PoolExhausted):
        session.lease(pool_pages)
    assert session.leased_pages == pages_leased(vattd_socket_dir, session) == 30
    session.give_back(pages)


def test_the_parts_of_a_lease_wait_no_longer_than_all_together(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session._connection.attached.max_pages_per_lease = 1
    lease, waits = session._client.lease, []

    def slow(page_count: int, least: int, purpose: LeasePurpose, wait_s: float) -> Grant:
        waits.append(wait_s)
        time.sleep(0.06)
        return lease(page_count, least, purpose, wait_s)

    with monkeypatch.context() as patched:
        patched.setattr(session._client, "lease", slow)
        session.give_back(session.lease(3, purpose=LeasePurpose.ADMIT, wait_s=0.1))
    assert 0.1 >= waits[0] > waits[1] > waits[2] == 0


def test_pages_are_returned_in_messages_that_vattd_takes(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    client = session._client
    monkeypatch.setattr(client, "_max_pages", 4)
    monkeypatch.setattr(client, "_max_runs", 2)
    sent: list[list[tuple[int, int]]] = []

    def take(request: vatt_pb2.ReturnPagesRequest, timeout: float) -> vatt_pb2.ReturnPagesResponse:
        sent.append([(run.first_page_id, run.page_count) for run in request.runs])
        return vatt_pb2.ReturnPagesResponse()

    monkeypatch.setattr(client._stub, "ReturnPages", take)
    runs = [(0, 9), (20, 3), (30, 1), (40, 1), (50, 1)]
    client.return_pages(vatt_pb2.PageRun(first_page_id=first, page_count=count) for first, count in runs)
    assert sent == [[(0, 4)], [(4, 4)], [(8, 1), (20, 3)], [(30, 1), (40, 1)], [(50, 1)]]


def test_an_import_that_fails_gives_the_grant_back(
    session: Session, vattd_socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DriverError("no", call="import_pages")

    with monkeypatch.context() as patched:
        patched.setattr(session.mapper, "import_pages", fail)
        with pytest.raises(DriverError):
            session.lease(5)
    assert session.leased_pages == pages_leased(vattd_socket_dir, session) == 0
    session.give_back(session.lease(5))


@pytest.mark.parametrize("lost_answers", [1, 2])
def test_a_lost_answer_neither_leaks_nor_doubles_a_lease(
    session: Session, vattd_socket_dir: Path, monkeypatch: pytest.MonkeyPatch, lost_answers: int
) -> None:
    stub = session._client._stub
    lease_pages = stub.LeasePages
    asked: list[str] = []

    def deaf(request: vatt_pb2.LeasePagesRequest, timeout: float) -> vatt_pb2.LeasePagesResponse:
        answer = lease_pages(request, timeout=timeout)
        asked.append(request.request_id)
        if len(asked) <= lost_answers:
            raise FailedCall(grpc.StatusCode.UNAVAILABLE, "the connection broke")
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(stub, "LeasePages", deaf)
        if lost_answers == 1:
            session.give_back(session.lease(6))
        else:
            with pytest.raises(DaemonUnreachable):
                session.lease(6)
            session._client.settle()  # as the next call would
    assert len(asked) == 2
    assert len(set(asked)) == 1
    assert session.leased_pages == pages_leased(vattd_socket_dir, session) == 0


@pytest.mark.parametrize("layout", list(Layout))
def test_a_cache_grows_over_leased_pages(session: Session, vattd_socket_dir: Path, layout: Layout) -> None:
    spec = KVCacheSpec(2, 2, 64, torch.float32, 4, 4096, layout)
    with KVCache(session, spec) as cache:
        slot = cache.acquire_slot()
        for count in range(100, 2000, 100):
            cache.grow(slot, count)
            for layer in range(2):
                for view in cache.layer(layer):
                    view[slot, count - 100 : count] = count
        k, v = cache.layer(1)
        assert k[slot, 1899, 0, 0] == v[slot, 1899, 1, 63] == 1900
        assert cache.stats().leased_bytes == session.leased_pages * session.page_size_bytes
        assert pages_leased(vattd_socket_dir, session) >= cache.stats().mapped_bytes // session.page_size_bytes


def test_closing_a_session_closes_its_caches_and_returns_everything(vattd_socket_dir: Path) -> None:
    session = Session.connect("closing", socket_dir=vattd_socket_dir)
    cache = KVCache(session, SPEC)
    cache.grow(cache.acquire_slot(), 1000)
    session.close()
    session.close()
    assert session.state is SessionState.CLOSED
    assert all(row.session_id != session.session_id for row in status(vattd_socket_dir).sessions)
    for call in (lambda: session.lease(1), session.reattach, lambda: cache.grow(0, 2000)):
        with pytest.raises(Closed):
            call()


class BrokenFence:
    """A device that does not answer, until it is mended."""

    def __init__(self) -> None:
        self.is_broken = True

    def __call__(self) -> None:
        if self.is_broken:
            raise RuntimeError("the device does not answer")


def test_a_session_has_no_threads_but_its_own_and_none_when_it_is_closed(vattd_socket_dir: Path) -> None:
    """gRPC's for a stream would end with the interpreter, perhaps holding a lock that a finalizer then waits for."""
    before = set(threading.enumerate())
    with Session.connect("session-tests", socket_dir=vattd_socket_dir) as session:
        session.give_back(session.lease(1))
        started = {thread.name for thread in set(threading.enumerate()) - before}
        assert "vattention-attach" in started
        assert all(name.startswith("vattention-") for name in started), started
    assert set(threading.enumerate()) <= before


def test_pages_that_may_be_in_use_stay_leased_when_a_session_is_closed(vattd_socket_dir: Path) -> None:
    session = Session.connect("closing", socket_dir=vattd_socket_dir)
    fence = BrokenFence()
    other, cache = KVCache(session, SPEC), KVCache(session, SPEC, fence=fence)
    other.grow(other.acquire_slot(), 100)
    cache.grow(cache.acquire_slot(), 1000)
    k, _ = cache.layer(1)
    k[0, :1000] = 3.0
    mapped_pages = cache.stats().mapped_bytes // session.page_size_bytes
    with pytest.raises(RuntimeError, match="does not answer"):
        session.close()
    assert session.state is SessionState.CLOSED
    assert pages_leased(vattd_socket_dir, session) == session.leased_pages == mapped_pages
    assert k[0, :1000].sum() == 3.0 * 1000 * 2 * 64
    fence.is_broken = False
    cache.close()
    session.mapper.close()


def test_pages_that_could_not_be_unmapped_stay_leased_when_a_session_is_closed(
    vattd_socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session.connect("closing", socket_dir=vattd_socket_dir)
    session.lease(3)
    close = session.mapper.close

    def fail() -> None:
        raise DriverError("no", call="close")

    monkeypatch.setattr(session.mapper, "close", fail)
    with pytest.raises(DriverError):
        session.close()
    assert pages_leased(vattd_socket_dir, session) == 3
    close()


def test_threads_at_work_in_a_session_that_is_closed_are_told_so(vattd_socket_dir: Path) -> None:
    for _ in range(5):
        session = Session.connect("closing", socket_dir=vattd_socket_dir)
        ends: list[BaseException] = []
        working = threading.Barrier(4 + 1)

        def work(session: Session, ends: list[BaseException], working: threading.Barrier) -> None:
            working.wait(WAIT_S)
            try:
                while True:
                    session.give_back(session.lease(3))
                    session.report_usage(Usage())
            except BaseException as error:  # noqa: BLE001  looked at below
                ends.append(error)  # noqa: B023  it is bound by this very handler

        threads = [threading.Thread(target=work, args=(session, ends, working)) for _ in range(4)]
        for thread in threads:
            thread.start()
        working.wait(WAIT_S)
        time.sleep(0.02)
        session.close()
        for thread in threads:
            thread.join(WAIT_S)
        assert [type(error) for error in ends] == [Closed] * 4, ends


def test_a_hung_vattd_holds_up_neither_growth_nor_close(own_vattd: Vattd) -> None:
    with ExitStack() as undo:
        session = Session.connect("hung", socket_dir=own_vattd.socket_dir)
        cache = KVCache(session, SPEC)
        slot = cache.acquire_slot()
        cache.grow(slot, 100)
        session.pages.set_growth_step(cache, 0)
        with session.pages._leasing:  # no refill is under way
            own_vattd.process.send_signal(signal.SIGSTOP)
        undo.callback(own_vattd.process.send_signal, signal.SIGCONT)
        began_s = time.monotonic()
        with pytest.raises(DaemonUnreachable):
            cache.grow(slot, 4096)
        assert time.monotonic() - began_s < 6
        began_s = time.monotonic()
        session.close()
        assert time.monotonic() - began_s < 5


def test_a_growth_that_a_hung_vattd_left_open_is_taken_back_later(own_vattd: Vattd) -> None:
    with Session.connect("hung", socket_dir=own_vattd.socket_dir) as session:
        own_vattd.process.send_signal(signal.SIGSTOP)
        try:
            began_s = time.monotonic()
            with pytest.raises(DaemonUnreachable):
                session.lease(3)
            assert time.monotonic() - began_s < 3
        finally:
            own_vattd.process.send_signal(signal.SIGCONT)
        session.give_back(session.lease(1))
        assert session.leased_pages == pages_leased(own_vattd.socket_dir, session) == 0


def test_re_attaching_a_session_that_is_attached_raises_no_alarm(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    session.reattach()
    session.give_back(session.lease(1))
    assert session.state is SessionState.ATTACHED
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_session_whose_stream_broke_re_attaches_by_itself(session: Session, vattd_socket_dir: Path) -> None:
    pages = session.lease(3)
    session_id = session.session_id
    break_stream(session)
    more = session.lease(2)
    assert (session.state, session.session_id, session.leased_pages) == (SessionState.ATTACHED, session_id, 5)
    assert pages_leased(vattd_socket_dir, session) == 5
    session.give_back(pages + more)


def test_a_session_whose_handle_socket_broke_re_attaches_by_itself(session: Session, vattd_socket_dir: Path) -> None:
    pages = session.lease(3)
    session._connection.handles.close()
    assert session._connection.stream.ends_within(WAIT_S), "vattd has it fenced, and says so"
    session.give_back(pages + session.lease(2))
    assert pages_leased(vattd_socket_dir, session) == 0


def test_many_threads_may_lease_and_return(session: Session, vattd_socket_dir: Path) -> None:
    failures: list[VattError] = []

    def work() -> None:
        try:
            for page_count in range(1, 15):
                session.give_back(session.lease(page_count))
        except VattError as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert session.leased_pages == pages_leased(vattd_socket_dir, session) == 0


def test_when_vattd_dies_the_engine_keeps_what_is_mapped(own_vattd: Vattd) -> None:
    with Session.connect("orphan", socket_dir=own_vattd.socket_dir) as session:
        cache = KVCache(session, SPEC)
        slot = cache.acquire_slot()
        cache.grow(slot, 256)
        k, _ = cache.layer(1)
        k[slot, :256] = 3.0
        own_vattd.process.kill()
        own_vattd.process.wait()
        session._connection.stream._thread.join(WAIT_S)
        assert session.state is SessionState.FENCED
        with pytest.raises(SessionFenced):
            cache.grow(slot, 4096)
        assert cache.length(slot) == 256
        assert k[slot, :256].sum() == 3.0 * 256 * 2 * 64
        cache.free_slot(slot)
        with pytest.raises(DaemonUnreachable, match="vattd start"):
            session.reattach()


def test_a_vattd_that_knows_nothing_of_the_session_says_so_and_the_engine_keeps_what_is_mapped(
    own_vattd: Vattd,
) -> None:
    with Session.connect("orphan", socket_dir=own_vattd.socket_dir) as session:
        cache = KVCache(session, SPEC)
        slot = cache.acquire_slot()
        cache.grow(slot, 256)
        k, _ = cache.layer(1)
        k[slot, :256] = 3.0
        own_vattd.stop()
        own_vattd.sockets.journal.unlink()
        own_vattd.start()
        with pytest.raises(SessionUnknown, match="connect anew"):
            session.lease(1)
        assert session.state is SessionState.LOST
        with pytest.raises(SessionUnknown):
            session.reattach()
        assert k[slot, :256].sum() == 3.0 * 256 * 2 * 64
    with Session.connect("orphan", socket_dir=own_vattd.socket_dir) as session:
        session.give_back(session.lease(1))


def test_a_session_whose_claim_was_heard_and_not_answered_is_back_with_its_pages(
    own_vattd: Vattd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It claims once more, and vattd awaits it no longer."""
    with Session.connect("claiming", socket_dir=own_vattd.socket_dir, patience_s=WAIT_S) as session:
        session.lease(16)
        attached = AttachStream.attached
        answers = 0

        def lose_the_first_answer(stream: AttachStream, timeout_s: float) -> vatt_pb2.Attached:
            nonlocal answers
            answer = attached(stream, timeout_s)
            answers += 1
            if answers == 1:
                raise DaemonUnreachable("the answer was lost")
            return answer

        monkeypatch.setattr(AttachStream, "attached", lose_the_first_answer)
        own_vattd.stop(signal.SIGKILL)
        own_vattd.start()
        session.give_back(session.lease(1))
        assert answers == 2
        assert session.state is SessionState.ATTACHED
        assert pages_leased(own_vattd.socket_dir, session) == 16


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_cache_goes_on_over_the_end_of_vattd(own_vattd: Vattd, number: signal.Signals) -> None:
    """What is mapped stays, what is freed meanwhile is told later, and what grows waits for the next vattd."""
    with Session.connect("heir", socket_dir=own_vattd.socket_dir) as session, KVCache(session, SPEC) as cache:
        first, second = cache.acquire_slot(), cache.acquire_slot()
        for slot, value in ((first, 3.0), (second, 4.0)):
            cache.grow(slot, 256)
            cache.layer(1)[0][slot, :256] = value
        own_vattd.stop(number)
        cache.free_slot(second)
        own_vattd.start()
        cache.grow(first, 2048)
        k, _ = cache.layer(1)
        k[first, 256:2048] = 5.0
        assert (k[first, :256] == 3.0).all()
        fork = cache.fork_slot(first)
        assert k[fork, :2048].float().sum() == k[first, :2048].float().sum()
        cache.free_slot(first)
        cache.free_slot(fork)
        session_id = session.session_id
    status = own_vattd.status()
    assert not [one for one in status.sessions if one.session_id == session_id]
    while pages_of(own_vattd.status())["quarantined"]:
        assert own_vattd.process.poll() is None


def test_a_lease_ahead_of_need_does_not_wait_for_a_vattd_that_has_gone(own_vattd: Vattd) -> None:
    with Session.connect("orphan", socket_dir=own_vattd.socket_dir) as session:
        own_vattd.stop()
        assert session._connection.stream.ends_within(WAIT_S)
        began_s = time.monotonic()
        with pytest.raises(SessionFenced):
            session.lease(1, purpose=LeasePurpose.AHEAD)
        assert time.monotonic() - began_s < 2


@pytest.mark.parametrize("device", ["cuda:0", "cpu", "0", 0, True])
def test_a_device_that_is_no_name_of_one_is_refused_with_the_names_there_are(device: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"'host' or a GPU's UUID"):
        Session.connect("tenant", device=device)


def test_more_than_there_is_is_refused_with_what_was_asked_for(session: Session) -> None:
    with pytest.raises(LimitExceeded, match="1000000000 pages are more than"):
        session.lease(10**9)
