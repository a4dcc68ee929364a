"""A user floods vattd, in every way that there is; another user's leases and new sessions go through all the while."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from statistics import median

import pytest

from tests.daemon import Vattd
from tests.raw_engine import RawEngine, close_all
from vatt.v1 import vatt_pb2 as pb

ROUNDS = 10
LEASES_A_ROUND = 10
# Most take a few milliseconds, beside a flood as well; without rates half a second. The flood takes a core of its own.
LEASE_WITHIN_S, SESSION_WITHIN_S = 0.2, 1.0
TIMES_SLOWER = 20.0
LARGE_WITHIN_S = 10.0  # an engine waits so long
# Descriptors of the flood's own, beyond those at first: its connections come and go.
MORE_FDS = {"calls": 12, "large": 12, "connections": 700, "pulls": 1100}

FLOOD = """
import os, sys, threading
from contextlib import suppress
from pathlib import Path
import grpc
from tests.raw_engine import HandleSocket, RawEngine, close_all
from vatt.sockets import Sockets
from vatt.v1 import vatt_pb2 as pb
os.setgroups([]); os.setgid(65534); os.setuid(12345)
sockets = Sockets(Path(sys.argv[1]))
engines = [RawEngine(sockets, "flood") for _ in range(4)]
def calls(engine, secret):
    key = pb.SessionKey(session_id=engine.key.session_id, secret=secret)
    for call in [engine.stub.ReportUsage.future(pb.ReportUsageRequest(key=key)) for _ in range(100)]:
        call.exception()
def large(engine, secret):
    key = pb.SessionKey(session_id=engine.key.session_id, secret=secret)
    request = pb.ReturnPagesRequest(key=key, runs=[pb.PageRun()] * 400_000)
    for call in [engine.stub.ReturnPages.future(request, timeout=1) for _ in range(4)]:
        with suppress(grpc.RpcError):
            call.result()
def connections(engine, secret):
    with suppress(Exception):  # refused
        HandleSocket(sockets).close()
def pulls(engine, secret):
    delivery, fds = engine.handles.pull([run.run for run in engine.runs])
    close_all(fds)
def flood(engine, secret):
    while True:
        globals()[sys.argv[2]](engine, secret)
for engine in engines:
    engine.runs = engine.lease(50)
    for secret in [engine.key.secret] if sys.argv[2] == "pulls" else (engine.key.secret, engine.key.secret, b"guess"):
        threading.Thread(target=flood, args=(engine, secret)).start()
print("floods", flush=True)
"""


def leases_and_sessions_s(vattd: Vattd, calm: RawEngine) -> tuple[float, float]:
    """How long a lease with its descriptors and its return, and a session, take: medians."""
    leases_s, sessions_s = [], []
    for _ in range(ROUNDS):
        begin_s = time.monotonic()
        with RawEngine(vattd.sockets, "new") as new:
            new.detach()
        sessions_s.append(time.monotonic() - begin_s)
        for _ in range(LEASES_A_ROUND):
            begin_s = time.monotonic()
            runs = calm.lease(4)
            close_all(calm.handles.pull([run.run for run in runs])[1])
            assert calm.give_back(runs) == 4
            leases_s.append(time.monotonic() - begin_s)
    return median(leases_s), median(sessions_s)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
@pytest.mark.parametrize("kind", list(MORE_FDS))
def test_others_go_on_while_a_user_floods(kind: str) -> None:
    with Vattd("--pool-max", "32MiB") as vattd, RawEngine(vattd.sockets, "calm") as calm:
        vattd.socket_dir.chmod(0o755)
        lease_s, session_s = leases_and_sessions_s(vattd, calm)
        command = [sys.executable, "-B", "-c", FLOOD, str(vattd.sockets.directory), kind]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as flood:
            assert flood.stdout is not None
            assert flood.stdout.readline() == "floods\n"
            fds = len(os.listdir(f"/proc/{vattd.pid}/fd"))
            flooded_lease_s, flooded_session_s = leases_and_sessions_s(vattd, calm)
            many = [pb.PageRun(first_page_id=page, page_count=1, generation=1) for page in range(10_000)]
            back = pb.ReturnPagesRequest(key=calm.key, runs=many)  # a large one, of pages that it does not hold
            assert calm.stub.ReturnPages(back, timeout=LARGE_WITHIN_S).returned_pages == 0
            assert len(os.listdir(f"/proc/{vattd.pid}/fd")) <= fds + MORE_FDS[kind]
            assert flood.poll() is None
            flood.kill()
        print(
            f"{kind}: leases {lease_s * 1e3:.1f} -> {flooded_lease_s * 1e3:.1f} ms, "
            f"sessions {session_s * 1e3:.1f} -> {flooded_session_s * 1e3:.1f} ms"
        )
        assert flooded_lease_s < LEASE_WITHIN_S + TIMES_SLOWER * lease_s
        assert flooded_session_s < SESSION_WITHIN_S + TIMES_SLOWER * session_s
        calm.detach()
