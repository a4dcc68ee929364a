"""A user's connections to the engine socket are bounded, and another's go on."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.daemon import Vattd
from tests.raw_engine import RawEngine
from vattd.doorkeeper import MAX_CONNECTIONS_PER_USER

CONNECTIONS = MAX_CONNECTIONS_PER_USER + 500
WITHIN_S = 60.0

MANY = f"""
import os, resource, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
os.setgroups([]); os.setgid(65534); os.setuid(12345)
all_of_them = [socket.socket(socket.AF_UNIX) for _ in range({CONNECTIONS})]
for one in all_of_them:
    one.connect(sys.argv[1])
print("connected", flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_users_connections_are_bounded_and_anothers_session_goes_on() -> None:
    with Vattd("--pool-max", "16MiB") as vattd, RawEngine(vattd.sockets, "calm") as calm:
        vattd.socket_dir.chmod(0o755)
        command = [sys.executable, "-c", MANY, str(vattd.sockets.engine)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as many:
            assert many.stdout is not None
            assert many.stdout.readline() == "connected\n"
            deadline_s = time.monotonic() + WITHIN_S
            while "were ended, those of a user" not in vattd.log:
                assert time.monotonic() < deadline_s
                assert calm.give_back(calm.lease(1)) == 1
            while len(os.listdir(f"/proc/{vattd.pid}/fd")) > MAX_CONNECTIONS_PER_USER + 100:
                assert time.monotonic() < deadline_s
            many.communicate("\n")
        calm.detach()
