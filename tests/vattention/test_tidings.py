"""What vattd says to a session beside its answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.daemon import Vattd
from tests.vattention.conftest import POOL_BYTES
from tests.vattention.test_wire_errors import refused
from vatt.errors import Draining, InvalidRequest, SessionEvicted, SessionFenced
from vatt.v1 import vatt_pb2, vatt_pb2_grpc
from vattention.attach_stream import AttachStream
from vattention.engine_client import EngineClient
from vattention.guarantee import Guarantee, MinMode
from vattention.page_source import LeasePurpose
from vattention.reclaimer import Reclaim, ReclaimDepth
from vattention.session import Session
from vattention.tidings import Tidings

WAIT_S = 10.0
Notice = vatt_pb2.Notice


class FakeStub:
    """An Attach whose events the test sends."""

    def __init__(self) -> None:
        self.events: Queue[vatt_pb2.AttachResponse | None] = Queue()

    def Attach(self, request: vatt_pb2.AttachRequest, **_: object) -> FakeStub:  # noqa: N802  gRPC's name
        return self

    def __iter__(self) -> Iterator[vatt_pb2.AttachResponse]:
        while (event := self.events.get()) is not None:
            yield event

    def cancel(self) -> None:
        self.events.put(None)


def hear(*events: vatt_pb2.AttachResponse, tidings: Tidings | None = None) -> Tidings:
    """What a session knows after a stream with these events."""
    stub: Any = FakeStub()
    tidings = tidings if tidings is not None else Tidings()
    stream = AttachStream(stub, vatt_pb2.AttachRequest(), tidings, lambda: None)
    for event in (vatt_pb2.AttachResponse(attached=vatt_pb2.Attached()), *events):
        stub.events.put(event)
    stream.close()
    return tidings


def notice(kind: vatt_pb2.Notice.Kind.ValueType) -> vatt_pb2.AttachResponse:
    return vatt_pb2.AttachResponse(notice=Notice(kind=kind, message="so it is"))


def reclaim(reclaim_id: int, depth: vatt_pb2.ReclaimDepth.ValueType) -> vatt_pb2.Reclaim:
    return vatt_pb2.Reclaim(
        reclaim_id=reclaim_id, page_count=7, depth=depth, within=Duration(seconds=2, nanos=500_000_000)
    )


def test_the_last_guarantee_counts() -> None:
    first = vatt_pb2.Guarantee(min_bytes=5, max_bytes=9, weight=3, min_mode=vatt_pb2.MIN_MODE_HARD, revision=1)
    second = vatt_pb2.Guarantee(weight=1, min_mode=vatt_pb2.MIN_MODE_SOFT, revision=2)
    assert hear().guarantee is None
    tidings = hear(vatt_pb2.AttachResponse(guarantee=first))
    assert tidings.guarantee == Guarantee(5, 9, 3, MinMode.HARD, 1)
    hear(vatt_pb2.AttachResponse(guarantee=second), tidings=tidings)
    assert tidings.guarantee == Guarantee(0, None, 1, MinMode.SOFT, 2)


def test_a_drain_is_over_when_it_is_called_off_or_a_new_stream_says_nothing_of_it() -> None:
    tidings = hear(notice(Notice.KIND_DRAINING))
    assert tidings.is_draining
    assert not hear(notice(Notice.KIND_RESUMED), tidings=tidings).is_draining
    assert not hear(tidings=hear(notice(Notice.KIND_DRAINING))).is_draining


def test_an_eviction_is_for_good() -> None:
    tidings = hear(tidings=hear(notice(Notice.KIND_EVICTED)))
    assert tidings.is_evicted
    assert tidings.last_notice is not None
    assert tidings.last_notice.kind == Notice.KIND_EVICTED


def test_reclaims_are_passed_on_also_one_that_came_before_anybody_listened() -> None:
    tidings = Tidings()
    passed: list[Reclaim] = []
    for reclaim_id in (1, 2):
        tidings.hear_reclaim(reclaim(reclaim_id, vatt_pb2.RECLAIM_DEPTH_IDLE))
    tidings.tell_of_reclaims(passed.append)
    tidings.hear_reclaim(reclaim(3, vatt_pb2.RECLAIM_DEPTH_RUNNING))
    assert passed == [Reclaim(2, 7, ReclaimDepth.IDLE, 2.5), Reclaim(3, 7, ReclaimDepth.RUNNING, 2.5)]


def test_an_event_of_a_later_wire_is_passed_over() -> None:
    assert hear(vatt_pb2.AttachResponse()).last_notice is None


def test_a_listener_that_fails_is_logged_and_the_next_message_is_heard(caplog: pytest.LogCaptureFixture) -> None:
    def fail(reclaim: Reclaim) -> None:
        raise RuntimeError("can't start new thread")

    tidings = Tidings()
    tidings.tell_of_reclaims(fail)
    wanted = vatt_pb2.AttachResponse(reclaim=reclaim(1, vatt_pb2.RECLAIM_DEPTH_IDLE))
    hear(wanted, notice(Notice.KIND_DRAINING), tidings=tidings)
    assert "can't start new thread" in caplog.text
    assert tidings.is_draining


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("failure", [RuntimeError("a bug"), SystemExit("the end")], ids=repr)
def test_whatever_ends_the_reading_ends_the_stream(failure: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    class BrokenStub(FakeStub):
        def __iter__(self) -> Iterator[vatt_pb2.AttachResponse]:
            yield vatt_pb2.AttachResponse(attached=vatt_pb2.Attached())
            raise failure

    stub: Any = BrokenStub()
    stream = AttachStream(stub, vatt_pb2.AttachRequest(), Tidings(), lambda: None)
    stream.attached(WAIT_S)
    stream._thread.join(WAIT_S)
    assert isinstance(stream.ended, SessionFenced)
    assert "is fenced: the" in caplog.text
    assert stub.events.get_nowait() is None  # the call was cancelled: vattd knows too


@pytest.mark.parametrize("reason", ["DRAINING", "SHUTTING_DOWN"])
def test_a_refusal_with_a_reason_is_not_asked_for_again(reason: str) -> None:
    asked: list[str] = []

    class Stub:
        def LeasePages(self, request: vatt_pb2.LeasePagesRequest, timeout: float) -> None:  # noqa: N802
            asked.append(request.request_id)
            raise refused(grpc.StatusCode.UNAVAILABLE, "not now", reason)

    stub: Any = Stub()
    client = EngineClient(stub, vatt_pb2.SessionKey(), 10, 10)
    with pytest.raises(Exception, match="not now") as raised:
        client.lease(1, 1, LeasePurpose.ADMIT, 0.0)
    assert getattr(raised.value, "reason", None) == reason
    assert len(asked) == 1
    client.settle()  # nothing is owed


# A session


@pytest.fixture
def session(vattd_socket_dir: Path) -> Iterator[Session]:
    with Session.connect("tidings", socket_dir=vattd_socket_dir) as session:
        yield session
    assert not [thread for thread in threading.enumerate() if thread.name == "vattention-reclaim"]


class Answers:
    """Takes AnswerReclaim in vattd's place."""

    def __init__(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ids: list[int] = []
        self.changed = threading.Condition()
        monkeypatch.setattr(session._client._stub, "AnswerReclaim", self.take)

    def take(self, request: vatt_pb2.AnswerReclaimRequest, timeout: float) -> vatt_pb2.AnswerReclaimResponse:
        with self.changed:
            self.ids.append(request.reclaim_id)
            self.changed.notify_all()
        return vatt_pb2.AnswerReclaimResponse()

    def wait_for(self, *ids: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.ids == [*ids], WAIT_S)


def test_a_sessions_pool_is_as_large_as_its_tenants_max(session: Session) -> None:
    pool_pages = POOL_BYTES // session.page_size_bytes
    for max_bytes, pages in ((POOL_BYTES // 2, pool_pages // 2), (2 * POOL_BYTES, pool_pages), (1, 0)):
        session._connection.tidings.hear_guarantee(vatt_pb2.Guarantee(max_bytes=max_bytes, weight=1))
        assert session.pool_pages == pages
    session._connection.tidings.hear_guarantee(vatt_pb2.Guarantee(weight=1))
    assert session.pool_pages == pool_pages


def test_a_session_says_that_it_is_drained_or_evicted(session: Session) -> None:
    assert (session.draining, session.evicted) == (False, False)
    session.check_admits()
    session._connection.tidings.hear_notice(Notice(kind=Notice.KIND_DRAINING))
    assert session.draining
    with pytest.raises(Draining):
        session.check_admits()
    session._connection.tidings.hear_notice(Notice(kind=Notice.KIND_EVICTED))
    assert session.evicted
    with pytest.raises(SessionEvicted):
        session.check_admits()


def test_a_session_gives_back_what_vattd_wants_and_says_so(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(session, monkeypatch)
    wanted: list[int] = []
    pages = session.lease(20)

    def on_pressure(page_count: int) -> None:
        wanted.append(page_count)
        session.pages.put(pages)

    session.on_pressure = on_pressure
    assert session.on_pressure is on_pressure
    session._connection.tidings.hear_reclaim(
        vatt_pb2.Reclaim(reclaim_id=5, page_count=20, depth=vatt_pb2.RECLAIM_DEPTH_RUNNING, within=Duration(seconds=60))
    )
    answers.wait_for(5)
    assert wanted == [20]
    session.pages.close()
    assert session.leased_pages == 0


def test_a_session_may_be_closed_by_its_callback(vattd_socket_dir: Path) -> None:
    session = Session.connect("tidings", socket_dir=vattd_socket_dir)
    session.lease(3)
    closed = threading.Event()

    def on_pressure(page_count: int) -> None:
        session.close()
        closed.set()

    session.on_pressure = on_pressure
    session._connection.tidings.hear_reclaim(reclaim(1, vatt_pb2.RECLAIM_DEPTH_RUNNING))
    assert closed.wait(WAIT_S)
    for thread in threading.enumerate():
        if thread.name == "vattention-reclaim":
            thread.join(WAIT_S)
            assert not thread.is_alive()


def test_a_session_may_be_closed_while_its_callback_runs(vattd_socket_dir: Path) -> None:
    begun, end = threading.Event(), threading.Event()

    def on_pressure(page_count: int) -> None:
        begun.set()
        assert end.wait(WAIT_S)

    session = Session.connect("tidings", socket_dir=vattd_socket_dir, on_pressure=on_pressure)
    session.lease(3)
    session._connection.tidings.hear_reclaim(reclaim(1, vatt_pb2.RECLAIM_DEPTH_RUNNING))
    assert begun.wait(WAIT_S)
    session.close()
    end.set()
    for thread in threading.enumerate():
        if thread.name == "vattention-reclaim":
            thread.join(WAIT_S)
            assert not thread.is_alive()


def test_a_fenced_session_gives_back_what_it_can_and_goes_on_when_it_re_attaches(session: Session) -> None:
    session.pages.set_growth_step(session, 100)
    session.pages.put(session.lease(5))
    stream = session._connection.stream
    stream._call.cancel()
    stream._thread.join(WAIT_S)
    session._connection.tidings.hear_reclaim(reclaim(1, vatt_pb2.RECLAIM_DEPTH_IDLE))
    session._reclaimer.close()  # once it is carried out, or never begun
    session.reattach()
    session.give_back(session.lease(1))


def test_a_session_that_cannot_read_its_stream_is_fenced_and_tries_another(
    own_vattd: Vattd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(response: vatt_pb2.AttachResponse) -> None:
        raise RuntimeError("a bug of the reader's")

    with Session.connect("tidings", socket_dir=own_vattd.socket_dir) as session:
        stream = session._connection.stream
        monkeypatch.setattr(stream, "_hear_guarded", fail)
        with grpc.insecure_channel(f"unix:{session._connection._sockets.admin}") as channel:
            admin = vatt_pb2_grpc.AdminServiceStub(channel)
            admin.Reserve(vatt_pb2.ReserveRequest(tenant="tidings", weight=2), timeout=WAIT_S)
        stream._thread.join(WAIT_S)
        assert isinstance(stream.ended, SessionFenced)
        assert "a bug of the reader's" in str(stream.ended)
        session.give_back(session.lease(1))


def test_a_callback_that_is_none_is_refused(session: Session, vattd_socket_dir: Path) -> None:
    with pytest.raises(InvalidRequest, match="on_pressure"):
        session.on_pressure = 5  # type: ignore[assignment]
    with pytest.raises(InvalidRequest, match="on_pressure"):
        Session.connect("tidings", socket_dir=vattd_socket_dir, on_pressure="x")  # type: ignore[arg-type]
