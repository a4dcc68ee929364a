"""A user's connections to the engine socket are bounded, and another's go on."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.daemon import Vattd
from tests.raw_engine import RawEngine
from vattd import doorkeeper
from vattd.doorkeeper import MAX_CONNECTIONS_PER_USER, keep_door

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


def test_a_doorkeeper_that_cannot_look_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def look(path: Path, most: int) -> int:
        nonlocal looks
        looks += 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(doorkeeper, "_look", look)
    monkeypatch.setattr(doorkeeper, "LOOK_EVERY_S", 0)

    async def story() -> None:
        keeping = asyncio.create_task(keep_door(Path("/nowhere")))
        while looks < 3:  # noqa: ASYNC110  nothing else tells
            await asyncio.sleep(0)
        keeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await keeping

    asyncio.run(story())
