"""A user floods vattd, with sessions and with bad keys; another user's leases go through all the while."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.daemon import Vattd
from tests.raw_engine import RawEngine

LEASES = 100
# Seldom do they take more than a few milliseconds each; without rates it is half a second.
MEDIAN_WITHIN_S = 0.2
MORE_FDS = 12

FLOOD = """
import os, sys, threading
from pathlib import Path
from tests.raw_engine import RawEngine
from vatt.sockets import Sockets
from vatt.v1 import vatt_pb2 as pb
os.setgroups([]); os.setgid(65534); os.setuid(12345)
engines = [RawEngine(Sockets(Path(sys.argv[1])), "flood") for _ in range(3)]
def flood(engine, secret):
    key = pb.SessionKey(session_id=engine.key.session_id, secret=secret)
    while True:
        for call in [engine.stub.ReportUsage.future(pb.ReportUsageRequest(key=key)) for _ in range(100)]:
            call.exception()
for engine in engines:
    for secret in (engine.key.secret, engine.key.secret, b"guess"):
        threading.Thread(target=flood, args=(engine, secret)).start()
print("floods", flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_leases_go_through_while_another_user_floods() -> None:
    with Vattd("--pool-max", "16MiB") as vattd, RawEngine(vattd.sockets, "calm") as calm:
        vattd.socket_dir.chmod(0o755)
        command = [sys.executable, "-B", "-c", FLOOD, str(vattd.sockets.directory)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as flood:
            assert flood.stdout is not None
            assert flood.stdout.readline() == "floods\n"
            fds = len(os.listdir(f"/proc/{vattd.pid}/fd"))
            took_s = []
            for _ in range(LEASES):
                begin_s = time.monotonic()
                assert calm.give_back(calm.lease(4)) == 4
                took_s.append(time.monotonic() - begin_s)
            assert len(os.listdir(f"/proc/{vattd.pid}/fd")) <= fds + MORE_FDS
            assert flood.poll() is None
            flood.kill()
        assert sorted(took_s)[LEASES // 2] < MEDIAN_WITHIN_S
        calm.detach()
