"""What a live vattd tells of what happens in it: WatchEvents, GetPageMap, and the counts of leases."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import grpc
import pytest

from tests.daemon import Vattd
from tests.operator import ANSWER_WITHIN_S, Operator, operator
from tests.raw_engine import RawEngine, reason_of
from vatt.v1 import vatt_pb2 as pb

PAGE = 64 << 10


@pytest.fixture
def vattd() -> Iterator[Vattd]:
    with Vattd("--pool-max", str(64 * PAGE), "--page-size", str(PAGE)) as vattd:
        yield vattd


@pytest.fixture
def admin(vattd: Vattd) -> Iterator[Operator]:
    with operator(vattd.sockets) as admin:
        yield admin


def events(admin: Operator, after: int = 0, min_lease_bytes: int = 0) -> list[pb.Event]:
    request = pb.WatchEventsRequest(after=after, min_lease_bytes=min_lease_bytes)
    return list(admin.admin.WatchEvents(request, timeout=ANSWER_WITHIN_S))


def page_map(admin: Operator, cell_count: int) -> pb.GetPageMapResponse:
    return admin.admin.GetPageMap(pb.GetPageMapRequest(cell_count=cell_count), timeout=ANSWER_WITHIN_S)


def test_a_sessions_life_is_told_in_order(vattd: Vattd, admin: Operator) -> None:
    with RawEngine(vattd.sockets, "chat") as engine:
        engine.lease(4)
        with pytest.raises(grpc.RpcError) as refused:
            engine.lease(65)
        engine.detach()
        told = [event for event in events(admin) if event.kind != "vattd_started"]
        assert [event.kind for event in told] == [
            "session_attached",
            "lease_granted",
            "lease_refused",
            "session_ended",
        ]
        assert {(event.tenant, event.session_id) for event in told} == {("chat", engine.key.session_id)}
        _, granted, refusal, ended = told
        assert (granted.bytes, granted.HasField("waited")) == (4 * PAGE, True)
        assert (refusal.bytes, refusal.reason) == (65 * PAGE, reason_of(refused.value))
        assert (ended.reason, ended.bytes) == ("detached", 4 * PAGE)
        assert [event.sequence for event in told] == list(range(told[0].sequence, told[0].sequence + 4))
        assert events(admin, after=refusal.sequence) == [ended]
        large = events(admin, min_lease_bytes=5 * PAGE)
        assert "lease_granted" not in [event.kind for event in large]
        assert "lease_refused" in [event.kind for event in large]


@pytest.mark.parametrize("page_count", [2**62, -(2**62), 0])
def test_a_number_that_no_lease_has_is_refused_and_told_without_it(
    vattd: Vattd, admin: Operator, page_count: int
) -> None:
    with RawEngine(vattd.sockets) as engine:
        with pytest.raises(grpc.RpcError) as error:
            engine.lease(page_count)
        assert reason_of(error.value) == "INVALID_REQUEST"
        [refusal] = [event for event in events(admin) if event.kind == "lease_refused"]
        assert (refusal.reason, refusal.bytes) == ("INVALID_REQUEST", 0)


def test_a_follower_hears_what_comes_and_its_stream_ends_with_vattd(vattd: Vattd, admin: Operator) -> None:
    stream = admin.admin.WatchEvents(pb.WatchEventsRequest(follow=True), timeout=ANSWER_WITHIN_S)
    assert next(stream).kind == "vattd_started"
    admin.reserve("chat", min_bytes=8 * PAGE)
    changed = next(stream)
    assert (changed.kind, changed.tenant, changed.bytes) == ("guarantee_changed", "chat", 8 * PAGE)
    for resume in (False, False, True, True):  # what is so already does not happen again
        admin.admin.Drain(pb.DrainRequest(resume=resume), timeout=ANSWER_WITHIN_S)
    assert [next(stream).kind, next(stream).kind] == ["drain_began", "drain_ended"]
    vattd.stop()
    assert list(stream) == []


def test_a_process_that_dies_and_one_that_is_killed_end_with_another_cause(vattd: Vattd, admin: Operator) -> None:
    program = (
        "import sys, time; from pathlib import Path; from tests.raw_engine import RawEngine; "
        "from vatt.sockets import Sockets; engine = RawEngine(Sockets(Path(sys.argv[1])), 'chat'); "
        "engine.lease(2); print(engine.key.session_id, flush=True); time.sleep(600)"
    )
    for cause in ("exited", "killed"):
        command = [sys.executable, "-c", program, str(vattd.sockets.directory)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as child:
            assert child.stdout is not None
            session_id = child.stdout.readline().strip()
            stream = admin.admin.WatchEvents(pb.WatchEventsRequest(follow=True), timeout=ANSWER_WITHIN_S)
            if cause == "killed":
                admin.admin.Evict(pb.EvictRequest(session_id=session_id, kill=True), timeout=ANSWER_WITHIN_S)
            else:
                child.kill()
            ended = next(event for event in stream if event.kind == "session_ended" and event.session_id == session_id)
            stream.cancel()
            assert (ended.reason, ended.bytes) == (cause, 2 * PAGE)


def test_what_is_asked_of_events_and_maps_is_checked(admin: Operator) -> None:
    for call in (
        lambda: events(admin, after=-1),
        lambda: events(admin, min_lease_bytes=-1),
        lambda: page_map(admin, 0),
        lambda: page_map(admin, 8193),
    ):
        with pytest.raises(grpc.RpcError) as error:
            call()
        assert reason_of(error.value) == "INVALID_REQUEST"


def test_the_page_map_shows_whose_pages_are_where(vattd: Vattd, admin: Operator) -> None:
    with RawEngine(vattd.sockets, "chat") as chat, RawEngine(vattd.sockets, "batch") as batch:
        chat.lease(16)
        batch.lease(8)
        # A map may be half a second old: what is asked is what it comes to.
        while True:
            found = page_map(admin, 64)
            leased: dict[str, int] = {}
            for cell in found.cells:
                if cell.state == "leased":
                    name = found.tenants[cell.tenant - 1]
                    leased[name] = leased.get(name, 0) + cell.page_count
            if leased == {"chat": 16, "batch": 8}:
                break
        assert found.pages_per_cell == 1
        assert sum(cell.total_pages for cell in found.cells) == 64
        assert len(page_map(admin, 10).cells) <= 10


def test_leases_are_counted_by_tenant(vattd: Vattd, admin: Operator) -> None:
    with RawEngine(vattd.sockets, "chat") as engine:
        runs = engine.lease(4, request_id="same")
        assert engine.lease(4, request_id="same") == runs  # a repeat is no other lease
        engine.lease(2)
        with pytest.raises(grpc.RpcError):
            engine.lease(1000)
        tenant = admin.tenant("chat")
        assert (tenant.granted_leases_total, tenant.granted_bytes_total) == (2, 6 * PAGE)
        assert tenant.refused_leases_total == 1
