"""The wire, by hand: what vattd answers to good clients, bad ones, and ones that go away."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.daemon import Vattd
from tests.raw_engine import HandleSocket, RawEngine, close_all, in_thread, page_count_of, page_ids_of, reason_of
from vatt.protocol import MAX_FDS_PER_PACKET, MAX_HANDLE_PACKET_BYTES, MAX_PAGES_PER_LEASE, MAX_USAGE_BYTES
from vatt.v1 import vatt_pb2 as pb
from vatt.v1 import vatt_pb2_grpc
from vattd.doorkeeper import pass_descriptors
from vattd.handle_server import MAX_UNATTACHED_PER_USER
from vattd.sessions import MAX_SESSIONS_PER_PROCESS

POOL_PAGES = 64
PAGE = 64 << 10
BYTE_FIGURES = ("token_bytes", "static_reservation_bytes", "paged16_bytes", "paged256_bytes")


@pytest.fixture(scope="module")
def module_vattd() -> Iterator[Vattd]:
    with Vattd("--pool-max", str(POOL_PAGES * PAGE), "--headroom", "256KiB") as vattd:
        yield vattd


@pytest.fixture
def vattd(module_vattd: Vattd) -> Iterator[Vattd]:
    """Each test must leave the daemon up and the pool whole."""
    yield module_vattd
    status = module_vattd.status()
    for session in status.sessions:  # a test that failed may leave some
        assert session.leased_bytes == 0, "a test left pages leased"
    assert sum(module_vattd.pages().values()) == POOL_PAGES


@pytest.fixture
def engine(vattd: Vattd) -> Iterator[RawEngine]:
    with RawEngine(vattd.sockets) as engine:
        yield engine
        if engine.key.session_id in {session.session_id for session in vattd.status().sessions}:
            engine.detach()


def test_a_lease_is_lent_shown_exported_and_returned(vattd: Vattd, engine: RawEngine) -> None:
    runs = engine.lease(5)
    assert page_count_of(runs) == 5
    [session] = [s for s in vattd.status().sessions if s.session_id == engine.key.session_id]
    assert (session.pid, session.leased_bytes) == (os.getpid(), 5 * PAGE)
    delivery, fds = engine.handles.pull([runs[0].run])
    assert delivery.page_count == len(fds) == runs[0].run.page_count
    os.pwrite(fds[0], b"kv", runs[0].offset_bytes)
    close_all(fds)
    assert engine.give_back(runs) == 5
    assert engine.give_back(runs) == 0, "a repeated return has no effect"


def test_a_repeated_lease_gets_the_first_answer(engine: RawEngine) -> None:
    first = engine.lease(4, request_id="same")
    assert engine.lease(4, request_id="same") == first
    engine.give_back(first)
    assert engine.lease(4, request_id="same") == [], "less what has been returned since"


def test_a_cancelled_lease_comes_back_and_stays_cancelled(engine: RawEngine) -> None:
    engine.lease(4, request_id="lost")
    request = pb.CancelLeaseRequest(key=engine.key, request_id="lost")
    assert engine.stub.CancelLease(request).returned_pages == 4
    assert engine.stub.CancelLease(request).returned_pages == 0
    with pytest.raises(grpc.RpcError) as caught:
        engine.lease(4, request_id="lost")
    assert reason_of(caught.value) == "LEASE_CANCELLED"


def test_a_return_under_an_old_generation_has_no_effect(engine: RawEngine) -> None:
    old = engine.lease(3)
    engine.give_back(old)
    new = engine.lease(3)
    assert set(page_ids_of(old)) & set(page_ids_of(new)), "the same pages, lent again"
    assert engine.give_back(old) == 0
    assert engine.give_back(new) == 3


def test_a_running_request_is_refused_at_once_when_the_pool_is_exhausted(vattd: Vattd, engine: RawEngine) -> None:
    runs = engine.lease(POOL_PAGES)
    with pytest.raises(grpc.RpcError) as caught:
        engine.lease(1)
    assert reason_of(caught.value) == "POOL_EXHAUSTED"
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert engine.give_back(runs) == POOL_PAGES


def test_fewer_pages_are_lent_only_to_who_said_so(engine: RawEngine) -> None:
    runs = engine.lease(POOL_PAGES - 2)
    with pytest.raises(grpc.RpcError):
        engine.lease(5)
    part = engine.lease(5, fewest=1)
    assert page_count_of(part) == 2
    engine.give_back([*runs, *part])


def test_a_new_request_waits_until_another_tenant_returns_its_pages(vattd: Vattd, engine: RawEngine) -> None:
    with RawEngine(vattd.sockets, "other") as other:
        theirs = other.lease(POOL_PAGES)
        thread, outcome = in_thread(lambda: engine.lease(8, purpose=pb.LEASE_PURPOSE_ADMIT, wait_s=30))
        while vattd.status().pool.waiting_pages != 8:
            assert thread.is_alive()
        other.give_back(theirs)
        thread.join()
        assert page_count_of(outcome[0]) == 8
        engine.give_back(outcome[0])
        other.detach()


def test_a_wait_ends_at_its_time(vattd: Vattd, engine: RawEngine) -> None:
    runs = engine.lease(POOL_PAGES)
    with pytest.raises(grpc.RpcError) as caught:
        engine.lease(1, purpose=pb.LEASE_PURPOSE_ADMIT, wait_s=0.05)
    assert reason_of(caught.value) == "POOL_EXHAUSTED"
    assert vattd.status().pool.waiting_pages == 0
    engine.give_back(runs)


def test_a_caller_that_stops_waiting_leaves_the_queue(vattd: Vattd, engine: RawEngine) -> None:
    runs = engine.lease(POOL_PAGES)
    request = pb.LeasePagesRequest(
        key=engine.key, request_id="gone", page_count=1, purpose=pb.LEASE_PURPOSE_ADMIT, wait=Duration(seconds=60)
    )
    call = engine.stub.LeasePages.future(request)
    while vattd.status().pool.waiting_pages != 1:
        assert not call.done()
    call.cancel()
    while vattd.status().pool.waiting_pages:
        pass
    engine.give_back(runs)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"page_count": 0}, "INVALID_REQUEST"),
        ({"page_count": -1}, "INVALID_REQUEST"),
        ({"page_count": MAX_PAGES_PER_LEASE + 1}, "INVALID_REQUEST"),
        ({"page_count": (1 << 63) - 1}, "INVALID_REQUEST"),
        ({"page_count": POOL_PAGES + 1}, "LIMIT_EXCEEDED"),
        ({"min_page_count": 9}, "INVALID_REQUEST"),
        ({"min_page_count": -1}, "INVALID_REQUEST"),
        ({"request_id": ""}, "INVALID_REQUEST"),
        ({"request_id": "x" * 65}, "INVALID_REQUEST"),
        ({"purpose": pb.LEASE_PURPOSE_UNSPECIFIED}, "INVALID_REQUEST"),
        ({"wait": {"seconds": 1}}, "INVALID_REQUEST"),
        ({"wait": {"seconds": -1}, "purpose": pb.LEASE_PURPOSE_ADMIT}, "INVALID_REQUEST"),
        ({"wait": {"seconds": 1 << 40}, "purpose": pb.LEASE_PURPOSE_ADMIT}, "INVALID_REQUEST"),
        ({"key": {"session_id": "nobody"}}, "SESSION_UNKNOWN"),
        ({"key": {}}, "SESSION_UNKNOWN"),
    ],
)
def test_a_lease_that_makes_no_sense_is_refused_by_name(
    engine: RawEngine, changes: dict[str, object], reason: str
) -> None:
    request: dict[str, Any] = {
        "key": engine.key,
        "request_id": "odd",
        "page_count": 8,
        "purpose": pb.LEASE_PURPOSE_GROW,
        **changes,
    }
    with pytest.raises(grpc.RpcError) as caught:
        engine.stub.LeasePages(pb.LeasePagesRequest(**request))
    assert reason_of(caught.value) == reason


def test_another_sessions_secret_opens_nothing(vattd: Vattd, engine: RawEngine) -> None:
    with RawEngine(vattd.sockets) as other:
        mixed = pb.SessionKey(session_id=engine.key.session_id, secret=other.key.secret)
        calls: list[Callable[[], object]] = [
            lambda: engine.stub.ReturnPages(pb.ReturnPagesRequest(key=mixed)),
            lambda: engine.stub.CancelLease(pb.CancelLeaseRequest(key=mixed, request_id="x")),
            lambda: engine.stub.ReportUsage(pb.ReportUsageRequest(key=mixed)),
            lambda: engine.stub.Detach(pb.DetachRequest(key=mixed)),
        ]
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert reason_of(caught.value) == "SESSION_UNKNOWN"
        other.detach()


def test_a_session_cannot_return_another_ones_pages(vattd: Vattd, engine: RawEngine) -> None:
    with RawEngine(vattd.sockets) as other:
        theirs = other.lease(3)
        assert engine.give_back(theirs) == 0
        delivery, fds = engine.handles.pull([theirs[0].run])
        assert (delivery.error.reason, fds) == ("PAGE_NOT_HELD", [])
        assert other.detach() == 3


@pytest.mark.parametrize(
    "run",
    [
        {"first_page_id": -1, "page_count": 1},
        {"first_page_id": 0, "page_count": 0},
        {"first_page_id": 0, "page_count": (1 << 63) - 1},
        {"first_page_id": (1 << 63) - 1, "page_count": 1 << 62},
    ],
)
def test_a_run_that_makes_no_sense_is_refused(engine: RawEngine, run: dict[str, int]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        engine.stub.ReturnPages(pb.ReturnPagesRequest(key=engine.key, runs=[pb.PageRun(**run)]))
    assert reason_of(caught.value) == "INVALID_REQUEST"
    delivery, fds = engine.handles.pull([pb.PageRun(**run)])
    assert (delivery.error.reason, fds) == ("INVALID_REQUEST", [])


@pytest.mark.parametrize(
    "usage",
    [
        {"mapped_pages": 3},
        {"mapped_pages": -1},
        *({name: size_bytes} for name in BYTE_FIGURES for size_bytes in (-1, MAX_USAGE_BYTES + 1, (1 << 63) - 1)),
    ],
)
def test_a_usage_that_makes_no_sense_is_refused_and_the_last_word_stands(
    vattd: Vattd, engine: RawEngine, usage: dict[str, int]
) -> None:
    runs = engine.lease(2)
    engine.report(mapped_pages=2, token_bytes=7)
    with pytest.raises(grpc.RpcError) as caught:
        engine.report(**usage)
    assert reason_of(caught.value) == "INVALID_REQUEST"
    [tenant] = [tenant for tenant in vattd.status().tenants if tenant.name == "test"]
    assert (tenant.mapped_bytes, tenant.token_bytes) == (2 * PAGE, 7)
    engine.give_back(runs)


def test_status_sums_the_usage_of_a_tenants_sessions(vattd: Vattd, engine: RawEngine) -> None:
    usage = dict(zip(BYTE_FIGURES, (100, 9 * PAGE, 300, MAX_USAGE_BYTES), strict=True))
    with RawEngine(vattd.sockets) as other:
        for each, page_count in ((engine, 3), (other, 2)):
            each.lease(page_count)
            each.report(mapped_pages=page_count, **usage)
        status = vattd.status()
        for session in status.sessions:
            assert {name: getattr(session, name) for name in BYTE_FIGURES} == usage
        [tenant] = [tenant for tenant in status.tenants if tenant.name == "test"]
        assert tenant.mapped_bytes == 5 * PAGE
        assert {name: getattr(tenant, name) for name in BYTE_FIGURES} == {name: 2 * usage[name] for name in usage}
        other.detach()
    [tenant] = [tenant for tenant in vattd.status().tenants if tenant.name == "test"]
    assert {name: getattr(tenant, name) for name in BYTE_FIGURES} == usage, "what has ended counts no more"
    engine.detach()


def test_a_session_is_told_the_pools_limit(engine: RawEngine) -> None:
    assert engine.attached.pool_pages == POOL_PAGES


@pytest.mark.parametrize("tenant", ["", "A", "-a", "a b", "a" * 64, "../x", "a\n", "é"])
def test_a_tenants_name_that_is_none_is_refused(vattd: Vattd, tenant: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        RawEngine(vattd.sockets, tenant)
    assert reason_of(caught.value) == "INVALID_REQUEST"


@pytest.mark.parametrize("token", [b"", b"x" * 16, b"x" * 100_000])
def test_a_wrong_token_is_refused(vattd: Vattd, token: bytes) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        RawEngine(vattd.sockets, token=token)
    assert reason_of(caught.value) == "TOKEN_REFUSED"


def test_a_token_is_good_once_and_dies_with_its_connection(vattd: Vattd, engine: RawEngine) -> None:
    gone = HandleSocket(vattd.sockets)
    gone.close()
    HandleSocket(vattd.sockets).close()  # the daemon has seen the first one's end before it welcomes another
    for token in (engine.handles.welcome.token, gone.welcome.token):
        with pytest.raises(grpc.RpcError) as caught:
            RawEngine(vattd.sockets, token=token)
        assert reason_of(caught.value) == "TOKEN_REFUSED"


@pytest.mark.parametrize(("lowest", "highest"), [(2, 3), (0, 0), (-5, -1)])
def test_a_client_of_another_version_is_told_both_sides(vattd: Vattd, lowest: int, highest: int) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        RawEngine(vattd.sockets, min_protocol_version=lowest, max_protocol_version=highest)
    assert reason_of(caught.value) == "VERSION_UNSUPPORTED"
    assert f"{lowest} to {highest}" in str(caught.value.details())


@pytest.mark.parametrize(
    "packet",
    [b"\xff" * 20, b"\x08", b"x" * (MAX_HANDLE_PACKET_BYTES + 1), pb.HandlePull(pull_id=3).SerializeToString()],
)
def test_a_malformed_handle_message_is_refused_by_name_and_the_next_one_served(
    engine: RawEngine, packet: bytes
) -> None:
    engine.handles.socket.send(packet)
    delivery, fds = engine.handles.receive()
    assert (delivery.error.reason, fds) == ("INVALID_REQUEST", [])
    runs = engine.lease(1)
    delivery, fds = engine.handles.pull([runs[0].run])
    assert delivery.page_count == len(fds) == 1
    close_all(fds)
    engine.give_back(runs)


@pytest.mark.parametrize("packet", [b"", pb.HandlePull(offered_zones=[1] * 100).SerializeToString(), b"\xff"])
def test_descriptors_sent_to_vattd_are_refused_or_end_the_connection(vattd: Vattd, packet: bytes) -> None:
    before = len(os.listdir(f"/proc/{vattd.pid}/fd"))
    for _ in range(20):
        handles = HandleSocket(vattd.sockets)
        try:
            socket.send_fds(handles.socket, [packet], [0] * 100)
        except PermissionError:  # Linux 6.16 or later
            assert pass_descriptors(handles.socket, True)
        else:
            with suppress(ConnectionResetError):  # it was closed with our packet unread
                assert handles.receive_or_end() == b""
        handles.close()
    assert len(os.listdir(f"/proc/{vattd.pid}/fd")) <= before + 4


@pytest.mark.parametrize("name", ["engine", "admin", "handles"])
def test_no_socket_takes_descriptors_where_the_kernel_can_be_told(vattd: Vattd, name: str) -> None:
    kind = socket.SOCK_SEQPACKET if name == "handles" else socket.SOCK_STREAM
    with socket.socket(socket.AF_UNIX, kind) as client:
        client.connect(str(getattr(vattd.sockets, name)))
        if not pass_descriptors(client, True):
            pytest.skip("this kernel cannot be told to refuse descriptors")
        with pytest.raises(PermissionError):
            socket.send_fds(client, [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], [0])


@pytest.mark.parametrize("method", [method.name for method in pb.DESCRIPTOR.services_by_name["EngineService"].methods])
def test_bytes_that_are_no_message_are_refused_by_name_and_leave_no_trace_in_the_log(vattd: Vattd, method: str) -> None:
    before = len(vattd.log)
    with grpc.insecure_channel(f"unix:{vattd.sockets.engine}") as channel:
        call: Any = channel.unary_stream(f"/vatt.v1.EngineService/{method}")
        with pytest.raises(grpc.RpcError) as caught:
            next(call(b"\xff" * 20, timeout=20))
    assert reason_of(caught.value) == "INVALID_REQUEST"
    assert len(vattd.log) == before


def test_a_pull_before_attach_is_refused(vattd: Vattd) -> None:
    handles = HandleSocket(vattd.sockets)
    assert handles.pull([pb.PageRun(page_count=1)])[0].error.reason == "INVALID_REQUEST"
    handles.close()


def test_one_packet_carries_as_many_descriptors_as_the_kernel_allows(vattd: Vattd) -> None:
    with Vattd("--pool-max", "2MiB", "--page-size", "4KiB") as small, RawEngine(small.sockets) as engine:
        runs = engine.lease(MAX_FDS_PER_PACKET + 1)
        whole = pb.PageRun(
            first_page_id=runs[0].run.first_page_id,
            page_count=MAX_FDS_PER_PACKET,
            generation=runs[0].run.generation,
        )
        delivery, fds = engine.handles.pull([whole])
        assert delivery.page_count == len(fds) == MAX_FDS_PER_PACKET
        close_all(fds)
        assert engine.handles.pull([leased.run for leased in runs])[0].error.reason == "INVALID_REQUEST"


def test_clients_that_do_not_read_hold_up_nobody_and_keep_no_descriptor_open(vattd: Vattd, engine: RawEngine) -> None:
    with ExitStack() as stack:
        deaf = [stack.enter_context(RawEngine(vattd.sockets, "deaf")) for _ in range(4)]
        mine = engine.lease(2)
        before = len(os.listdir(f"/proc/{vattd.pid}/fd"))
        for one in deaf:
            pull = pb.HandlePull(pull_id=1, runs=[leased.run for leased in one.lease(12)]).SerializeToString()
            one.handles.socket.setblocking(False)
            with suppress(BlockingIOError):
                for _ in range(100_000):
                    one.handles.socket.send(pull)
                pytest.fail("vattd read 100,000 pulls of a client that reads no answer")
        assert engine.handles.pull([mine[0].run])[0].page_count == mine[0].run.page_count
        deadline_s = time.monotonic() + 20
        while len(os.listdir(f"/proc/{vattd.pid}/fd")) > before + 2:  # a slab's, and what is being answered
            assert time.monotonic() < deadline_s, "descriptors are kept open for answers that nobody reads"
        for one in deaf:
            for _ in range(3):  # whoever reads goes on
                one.handles.socket.settimeout(20)
                delivery, fds = one.handles.receive()
                assert delivery.page_count == len(fds) == 12
                close_all(fds)
            one.detach()
    engine.detach()


def test_a_page_is_pulled_once_at_a_time(engine: RawEngine) -> None:
    [leased] = engine.lease(8)
    first, generation = leased.run.first_page_id, leased.run.generation
    inside = pb.PageRun(first_page_id=first + 7, page_count=1, generation=generation)
    delivery, fds = engine.handles.pull([leased.run, inside])
    assert delivery.error.reason == "INVALID_REQUEST"
    assert "twice" in delivery.error.message
    assert not fds
    engine.detach()


def test_pulls_that_are_broken_off_leave_no_descriptor_open(vattd: Vattd) -> None:
    before = len(os.listdir(f"/proc/{vattd.pid}/fd"))
    for _ in range(20):
        with RawEngine(vattd.sockets, "hasty") as hasty:
            runs = hasty.lease(60)
            pull = pb.HandlePull(pull_id=1, runs=[leased.run for leased in runs])
            hasty.handles.socket.send(pull.SerializeToString())
            assert hasty.detach() == 60
    deadline_s = time.monotonic() + 10
    while len(os.listdir(f"/proc/{vattd.pid}/fd")) > before + 2:
        assert time.monotonic() < deadline_s, "descriptors leak"


def test_a_return_of_more_pages_than_there_can_be_is_refused_at_once(vattd: Vattd, engine: RawEngine) -> None:
    runs = engine.lease(32)
    absurd = pb.PageRun(first_page_id=0, page_count=1 << 40, generation=1)
    begin_s = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        engine.stub.ReturnPages(pb.ReturnPagesRequest(key=engine.key, runs=[absurd] * 65_536))
    assert reason_of(caught.value) == "INVALID_REQUEST"
    assert time.monotonic() - begin_s < 5
    engine.give_back(runs)


def test_a_process_may_have_only_so_many_sessions(vattd: Vattd) -> None:
    with ExitStack() as stack:
        engines = []
        for _ in range(MAX_SESSIONS_PER_PROCESS):
            engines.append(stack.enter_context(RawEngine(vattd.sockets, "many")))
            engines[-1].handles.close()  # a session without a connection counts as well
        with pytest.raises(grpc.RpcError) as caught:
            RawEngine(vattd.sockets, "many")
        assert reason_of(caught.value) == "INVALID_REQUEST"
        for engine in engines:
            engine.detach()


CONNECT = """
import socket, sys
connections = []
while True:
    for _ in range(int(sys.stdin.readline())):
        connections.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        connections[-1].connect(sys.argv[1])
        welcome = connections[-1].recv(1 << 16)
    print(welcome.hex(), flush=True)
"""


def test_one_users_processes_may_have_only_so_many_connections_that_do_not_attach(vattd: Vattd) -> None:
    with ExitStack() as stack:

        def connect(count: int) -> pb.HandleWelcome:
            """In a process more; what the last connection was told."""
            command = [sys.executable, "-S", "-c", CONNECT, str(vattd.sockets.handles)]
            process = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            )
            stack.callback(process.kill)
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{count}\n")
            return pb.HandleWelcome.FromString(bytes.fromhex(process.stdout.readline()))

        attached = stack.enter_context(RawEngine(vattd.sockets, "first"))
        for count in (64, 64, 64, MAX_UNATTACHED_PER_USER - 192):
            assert connect(count).token
        refused = connect(1).error
        assert f"{MAX_UNATTACHED_PER_USER} connections that have not attached" in refused.message
        assert attached.lease(1), "who has attached goes on"
        assert attached.detach() == 1


@pytest.mark.parametrize("name", ["\x1b]0;owned\x07", "x" * 257, "two\nlines"])
def test_a_clients_name_that_could_harm_a_terminal_is_refused(vattd: Vattd, name: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        RawEngine(vattd.sockets, client_name=name)
    assert reason_of(caught.value) == "INVALID_REQUEST"


def test_a_name_of_any_length_gets_a_short_answer(vattd: Vattd) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        RawEngine(vattd.sockets, "a" * 100_000)
    assert reason_of(caught.value) == "INVALID_REQUEST"


def test_a_session_whose_stream_breaks_is_fenced_keeps_its_pages_and_can_come_back(vattd: Vattd) -> None:
    engine = RawEngine(vattd.sockets, "fickle")
    runs = engine.lease(3)
    engine.stream.cancel()
    while [s.state for s in vattd.status().sessions if s.session_id == engine.key.session_id] != ["fenced"]:
        pass
    with pytest.raises(grpc.RpcError) as caught:
        engine.lease(1)
    assert reason_of(caught.value) == "SESSION_FENCED"
    assert engine.handles.pull([runs[0].run])[0].error.reason == "SESSION_FENCED"
    with RawEngine(vattd.sockets, "fickle", resume=engine.key) as again:
        assert again.key == engine.key
        delivery, fds = again.handles.pull([runs[0].run])
        assert delivery.page_count == len(fds)
        close_all(fds)
        assert again.detach() == 3
    engine.close()


def test_only_the_session_itself_can_resume_it(vattd: Vattd, engine: RawEngine) -> None:
    for key, tenant in (
        (pb.SessionKey(session_id=engine.key.session_id, secret=b"guess"), "test"),
        (pb.SessionKey(session_id="nobody", secret=engine.key.secret), "test"),
        (engine.key, "other"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            RawEngine(vattd.sockets, tenant, resume=key)
        assert reason_of(caught.value) == "SESSION_UNKNOWN"


def test_the_engine_socket_has_no_admin_method(vattd: Vattd) -> None:
    with grpc.insecure_channel(f"unix:{vattd.sockets.engine}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            vatt_pb2_grpc.AdminServiceStub(channel).GetStatus(pb.GetStatusRequest())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert vattd.sockets.admin.stat().st_mode & 0o777 == 0o600


def test_health_and_reflection_answer_on_both_sockets(vattd: Vattd) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    for path, service in (
        (vattd.sockets.engine, "vatt.v1.EngineService"),
        (vattd.sockets.admin, "vatt.v1.AdminService"),
    ):
        with grpc.insecure_channel(f"unix:{path}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # its type stubs know no methods
            health = stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            reflected: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            [answer] = reflected.ServerReflectionInfo(iter([request]))
            assert service in [listed.name for listed in answer.list_services_response.service]
