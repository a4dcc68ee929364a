"""A device that is lost, at each call of vattd's that can meet it and at an engine's: who is told, and how all ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import grpc
import pytest

from tests.cudasim import MIB, World
from tests.daemon import Vattd
from tests.raw_engine import RawEngine, reason_of
from vatt.v1 import vatt_pb2 as pb
from vatt.v1 import vatt_pb2_grpc
from vattd.daemon import EXIT_DEVICE_LOST

WAIT_S = 20.0
POOL = ("--pool-max", "64MiB", "--headroom", "0")
# What a lease of pages that were never lent calls: they are created, and since they hold anything, scrubbed.
AT_A_LEASE = [
    "cuMemCreate",
    "cuDevicePrimaryCtxRetain",
    "cuMemAddressReserve",
    "cuCtxGetCurrent",
    "cuMemMap",
    "cuMemSetAccess",
    "cuMemsetD8",
    "cuCtxSynchronize",
    "cuMemUnmap",
]


def lose_at_a_lease(engine: RawEngine, vattd: Vattd) -> str:
    with pytest.raises(grpc.RpcError) as refused:
        engine.lease(4)
    return reason_of(refused.value)


def lose_at_an_export(engine: RawEngine, vattd: Vattd) -> str:
    runs = engine.lease(4)
    delivery, fds = engine.handles.pull([leased.run for leased in runs])
    assert not fds
    return delivery.error.reason


def lose_at_a_shrink(engine: RawEngine, vattd: Vattd) -> str:
    engine.give_back(engine.lease(4))
    with grpc.insecure_channel(f"unix:{vattd.sockets.admin}") as channel:
        with pytest.raises(grpc.RpcError) as refused:
            vatt_pb2_grpc.AdminServiceStub(channel).Shrink(pb.ShrinkRequest(), timeout=WAIT_S)
    return reason_of(refused.value)


CASES = [(call, lose_at_a_lease) for call in AT_A_LEASE]
CASES += [("cuMemExportToShareableHandle", lose_at_an_export), ("cuMemRelease", lose_at_a_shrink)]


@pytest.mark.parametrize(("call", "lose"), CASES, ids=[call for call, _ in CASES])
def test_who_meets_it_and_every_session_are_told_and_vattd_ends(
    call: str, lose: Callable[[RawEngine, Vattd], str]
) -> None:
    with World(memory_bytes=512 * MIB, context_bytes=64 * MIB) as world:
        with Vattd(*POOL, device="0", env=world.env()) as vattd:
            with RawEngine(vattd.sockets) as engine, RawEngine(vattd.sockets) as bystander:
                world.faults.fail("ECC_UNCORRECTABLE", call, pid=vattd.pid)
                assert lose(engine, vattd) == "DEVICE_LOST"
                assert next(event.notice.kind for event in bystander.stream if event.HasField("notice")) == (
                    pb.Notice.KIND_DEVICE_LOST
                )
                assert vattd.process.wait(WAIT_S) == EXIT_DEVICE_LOST
            assert "vattd stops lending" in vattd.log
        assert world.refused() == 0
        assert world.used_bytes() == 0


def test_status_says_so_while_vattd_still_lives() -> None:
    with World(memory_bytes=512 * MIB, context_bytes=64 * MIB) as world:
        with Vattd(*POOL, device="0", env=world.env()) as vattd, RawEngine(vattd.sockets) as engine:
            world.faults.stall("cuMemCreate", code="ILLEGAL_ADDRESS", pid=vattd.pid)
            leasing = threading.Thread(target=lambda: lose_at_a_lease(engine, vattd))
            leasing.start()
            world.faults.wait_for_stalled()
            with grpc.insecure_channel(f"unix:{vattd.sockets.admin}") as channel:
                stub = vatt_pb2_grpc.AdminServiceStub(channel)
                # Asks the driver for the device's memory, behind the call that stalls.
                asked = stub.GetStatus.future(pb.GetStatusRequest(), timeout=WAIT_S)
                stub.Drain(pb.DrainRequest(), timeout=WAIT_S)  # so by now the other has been heard
                world.faults.release()
                status = asked.result(WAIT_S)
            leasing.join(WAIT_S)
            assert status.daemon.state == "device_lost"
            assert {row.state: row.page_count for row in status.pool.pages_by_state if row.page_count} == {
                "unbacked": 32
            }
            assert vattd.process.wait(WAIT_S) == EXIT_DEVICE_LOST


ENGINE = """
import os
import sys
from tests.cudasim import Faults
from vatt.errors import DeviceLost
from vattention import kvcache, Session
from vattention.kvcache import KVCache
from vattention.layout import KVCacheSpec
import torch

kvcache.torch_device = lambda device: torch.device("cpu")
kvcache.default_fence = lambda device: lambda: None
session = Session.connect("lost", socket_dir=sys.argv[1])
cache = KVCache(session, KVCacheSpec(1, 1, 2048, torch.float32, max_batch_size=2, max_context_length=1024))
cache.grow(cache.acquire_slot(), 256)
Faults.here().fail("ILLEGAL_ADDRESS", sys.argv[2], pid=os.getpid())
try:
    cache.grow(0, 1024)
    cache.shrink(0, 1)
    session.give_back(session.pages.give_up(100))
except DeviceLost:
    print("lost")
for _ in range(2):
    try:
        session.close()
    except DeviceLost:
        print("lost at close")
print("closed")
"""


@pytest.mark.parametrize(
    "call", ["cuMemImportFromShareableHandle", "cuMemMap", "cuMemSetAccess", "cuMemUnmap", "cuMemRelease"]
)
def test_an_engine_whose_device_is_lost_is_told_and_can_close_and_vattd_goes_on(call: str) -> None:
    with World(memory_bytes=512 * MIB, context_bytes=64 * MIB) as world:
        with Vattd(*POOL, device="0", env=world.env()) as vattd:
            engine = subprocess.run(
                [sys.executable, "-c", ENGINE, str(vattd.socket_dir), call],
                env=os.environ | world.env(),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert engine.returncode == 0, engine.stderr
            lines = engine.stdout.split("\n")
            assert lines[0].startswith("lost"), engine.stdout
            assert lines[-2] == "closed"
            with vattd.admin() as ask:
                while ask().sessions:  # its pages come back with its end
                    assert vattd.process.poll() is None
            with RawEngine(vattd.sockets) as another:
                assert another.lease(32)
            assert vattd.stop() == 0
        assert world.refused() == 0
        assert world.used_bytes() == 0
