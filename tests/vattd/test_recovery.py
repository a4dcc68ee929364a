"""What a session of an earlier vattd's may say, and what it may not, over the wire."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.daemon import Vattd, patched
from tests.raw_engine import HandleSocket, RawEngine, close_all, reason_of
from vatt.v1 import vatt_pb2 as pb
from vatt.v1 import vatt_pb2_grpc

PAGE = 64 << 10
ZONE_PAGES = 1 << 40


@pytest.fixture
def vattd() -> Iterator[Vattd]:
    with Vattd("--pool-max", "4MiB", "--headroom", "0") as vattd:
        yield vattd


def slab_of(engine: RawEngine, leased: pb.LeasedRun) -> int:
    one = pb.PageRun(first_page_id=leased.run.first_page_id, page_count=1, generation=leased.run.generation)
    _, (fd,) = engine.handles.pull([one])
    return fd


def offer(handles: HandleSocket, slabs: dict[int, int]) -> None:
    packet = pb.HandlePull(pull_id=1, offered_zones=slabs).SerializeToString()
    if slabs:
        socket.send_fds(handles.socket, [packet], list(slabs.values()))
        delivery, _ = handles.receive()
        assert not delivery.HasField("error")


class Resumed:
    """A session resumed by hand at a new vattd."""

    def __init__(
        self, vattd: Vattd, engine: RawEngine, claims: list[pb.PageRun], slabs: dict[int, int], **changes: Any
    ) -> None:
        self.handles = HandleSocket(vattd.sockets)
        offer(self.handles, slabs)
        request = {
            "token": self.handles.welcome.token,
            "tenant": "test",
            "min_protocol_version": 1,
            "max_protocol_version": 1,
            "resume": engine.key,
            "claims": claims,
            **changes,
        }
        self.channel = grpc.insecure_channel(
            f"unix:{vattd.sockets.engine}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self.stub = vatt_pb2_grpc.EngineServiceStub(self.channel)
        self.stream: Any = self.stub.Attach(pb.AttachRequest(**request))
        try:
            self.attached: pb.Attached = next(self.stream).attached
        except grpc.RpcError:
            self.close()
            raise

    def close(self) -> None:
        self.stream.cancel()
        self.channel.close()
        self.handles.close()

    def __enter__(self) -> Resumed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def restart(vattd: Vattd) -> None:
    vattd.stop(signal.SIGKILL)
    vattd.start()


def refusal(*arguments: Any, **changes: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        Resumed(*arguments, **changes)
    return reason_of(caught.value), str(caught.value.details())


def run_at(first: int, page_count: int, generation: int) -> pb.PageRun:
    return pb.PageRun(first_page_id=first, page_count=page_count, generation=generation)


def test_claims_that_cannot_be_are_refused_and_the_session_may_try_again(vattd: Vattd) -> None:
    with RawEngine(vattd.sockets) as engine, RawEngine(vattd.sockets, "other") as other:
        [leased] = engine.lease(8)
        [theirs] = other.lease(8)
        zone, slab, their_slab = leased.run.first_page_id // ZONE_PAGES, slab_of(engine, leased), slab_of(other, theirs)
        restart(vattd)
        first, generation = leased.run.first_page_id, leased.run.generation
        slabs = {zone: slab}
        now = (vattd.status().daemon.incarnation << 32) + 1
        for claims, offers, words in (
            ([leased.run], {}, "its slab is not offered"),
            ([leased.run], {zone: their_slab}, "its slab is not offered"),
            ([theirs.run], {zone: slab, theirs.run.first_page_id // ZONE_PAGES: slab}, "its slab is not offered"),
            ([run_at(first, 8 + 64 + 1, generation)], slabs, "nobody has so many"),
            ([leased.run, run_at(first, 1, generation)], slabs, "claimed twice"),
            ([run_at(first, 3, generation), run_at(first + 2, 2, generation)], slabs, "claimed twice"),
            ([run_at(first, 8, now)], slabs, "is not an earlier vattd's"),
            ([run_at(first, 0, generation)], slabs, "not an extent"),
            ([run_at(-1, 1, generation)], slabs, "not an extent"),
        ):
            reason, said = refusal(vattd, engine, claims, offers)
            assert reason == "INVALID_REQUEST"
            assert words in said
        session = next(one for one in vattd.status().sessions if one.tenant == "test")
        assert (session.state, session.leased_bytes) == ("recovering", 8 * PAGE)
        with Resumed(vattd, engine, [leased.run], slabs) as resumed:
            assert resumed.attached.key == engine.key
            assert not resumed.attached.refused_claims
            request = pb.ReturnPagesRequest(key=engine.key, runs=[leased.run])
            assert resumed.stub.ReturnPages(request).returned_pages == 8
            assert resumed.stub.ReturnPages(request).returned_pages == 0
        close_all([slab, their_slab])


def test_of_more_pages_than_a_session_was_lent_the_last_are_refused(vattd: Vattd) -> None:
    with RawEngine(vattd.sockets) as engine:
        [leased] = engine.lease(8)
        slab, zone = slab_of(engine, leased), leased.run.first_page_id // ZONE_PAGES
        restart(vattd)
        first, generation = leased.run.first_page_id, leased.run.generation
        with Resumed(vattd, engine, [run_at(first, 11, generation)], {zone: slab}) as resumed:
            assert list(resumed.attached.refused_claims) == [run_at(first + 8, 3, generation)]
            assert resumed.stub.Detach(pb.DetachRequest(key=engine.key)).returned_pages == 8
        os.close(slab)


def test_only_the_sessions_own_process_with_its_secret_resumes_it(vattd: Vattd) -> None:
    with RawEngine(vattd.sockets) as engine:
        restart(vattd)
        key = engine.key
        wrong = pb.SessionKey(session_id=key.session_id, secret=b"x" * 16)
        assert refusal(vattd, engine, [], {}, resume=wrong)[0] == "SESSION_UNKNOWN"
        assert refusal(vattd, engine, [], {}, tenant="another")[0] == "SESSION_UNKNOWN"
        code = f"""
import grpc, sys
from tests.raw_engine import HandleSocket, reason_of
from vatt.sockets import Sockets
from vatt.v1 import vatt_pb2 as pb, vatt_pb2_grpc
from pathlib import Path
sockets = Sockets(Path({str(vattd.sockets.directory)!r}))
handles = HandleSocket(sockets)
key = pb.SessionKey(session_id={key.session_id!r}, secret={key.secret!r})
stub = vatt_pb2_grpc.EngineServiceStub(grpc.insecure_channel(f"unix:{{sockets.engine}}"))
request = pb.AttachRequest(token=handles.welcome.token, tenant="test", min_protocol_version=1, max_protocol_version=1,
                           resume=key)
try:
    next(stub.Attach(request))
except grpc.RpcError as error:
    print(reason_of(error))
"""
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
        assert result.stdout.strip() == "SESSION_UNKNOWN", result.stderr
        Resumed(vattd, engine, [], {}).close()


def test_pages_that_two_sessions_claim_are_neithers(vattd: Vattd) -> None:
    with RawEngine(vattd.sockets) as honest, RawEngine(vattd.sockets) as liar:
        [leased] = honest.lease(8)
        liar.lease(8)
        slab, zone = slab_of(honest, leased), leased.run.first_page_id // ZONE_PAGES
        restart(vattd)
        with (
            Resumed(vattd, honest, [leased.run], {zone: slab}) as first,
            Resumed(vattd, liar, [leased.run], {}) as second,
        ):
            assert list(second.attached.refused_claims) == [leased.run]
            kinds = []
            while pb.Notice.KIND_CLAIM_DISPUTED not in kinds:
                letter = next(first.stream)
                kinds += [letter.notice.kind] if letter.HasField("notice") else []
            status = vattd.status()
            assert status.daemon.disputed_pages_total == 8
            assert {one.leased_bytes for one in status.sessions} == {0}
            for resumed, key in ((first, honest.key), (second, liar.key)):
                request = pb.ReturnPagesRequest(key=key, runs=[leased.run])
                assert resumed.stub.ReturnPages(request).returned_pages == 0
            first.stub.Detach(pb.DetachRequest(key=honest.key))
            assert vattd.pages()["quarantined"] == 8, "the other may have them mapped"
            second.stub.Detach(pb.DetachRequest(key=liar.key))
        while vattd.pages()["quarantined"]:
            assert vattd.process.poll() is None
        os.close(slab)


def test_who_resumes_is_told_the_version_of_the_wire_that_was_agreed_on_this_time(tmp_path: Path) -> None:
    """The session's first library, or vattd, may have spoken another."""
    newer = patched(tmp_path, "from vattd import sessions\nsessions.MAX_VERSION = 2\n")
    with Vattd("--pool-max", "4MiB", "--headroom", "0", env=newer) as vattd, RawEngine(vattd.sockets, "test") as engine:
        assert engine.attached.protocol_version == 1
        with Resumed(vattd, engine, [], {}, max_protocol_version=2) as resumed:
            assert resumed.attached.protocol_version == 2
        with Resumed(vattd, engine, [], {}) as resumed:
            assert resumed.attached.protocol_version == 1
        restart(vattd)
        with Resumed(vattd, engine, [], {}) as resumed:
            assert resumed.attached.protocol_version == 1


def offer_often(vattd: Vattd, slabs: dict[int, int]) -> None:
    """Over several connections. Returns when vattd has as many descriptors as before."""
    before = len(os.listdir(f"/proc/{vattd.pid}/fd"))
    strangers = [HandleSocket(vattd.sockets) for _ in range(3)]
    try:
        for stranger in strangers:
            for _ in range(2):
                offer(stranger, slabs)
    finally:
        for stranger in strangers:
            stranger.close()
    while len(os.listdir(f"/proc/{vattd.pid}/fd")) > before:
        assert vattd.process.poll() is None


def test_what_nobody_misses_is_not_kept(vattd: Vattd) -> None:
    """Descriptors that are sent along are closed, whatever they are."""
    with RawEngine(vattd.sockets) as engine:
        [leased] = engine.lease(8)
        slab, zone = slab_of(engine, leased), leased.run.first_page_id // ZONE_PAGES
        with suppress(PermissionError):  # since Linux 6.16, who is not awaited cannot even send them
            offer_often(vattd, {zone: slab, 77: 0})
        restart(vattd)
        offer_often(vattd, {zone: 0, 77: slab})
        os.close(slab)
