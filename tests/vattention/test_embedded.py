"""A private vattd that lives and dies with this process."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vatt.errors import DaemonUnreachable
from vattention import embedded
from vattention.kvcache import KVCache
from vattention.layout import KVCacheSpec
from vattention.session import Session

WAIT_S = 10.0
SPEC = KVCacheSpec(2, 2, 64, torch.float32, max_batch_size=4, max_context_length=4096)


def test_an_embedded_vattd_is_shared_and_ends_with_its_last_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VATTENTION_DAEMON", "embedded")
    with Session.connect("embedded", device="host") as session:
        (daemon,) = embedded._running.values()
        assert daemon._directory.stat().st_mode & 0o777 == 0o700
        with Session.connect("embedded", device="host") as other:
            other.give_back(other.lease(2))
            assert (daemon.users, len(embedded._running)) == (2, 1)
        cache = KVCache(session, SPEC)
        cache.grow(cache.acquire_slot(), 100)
    assert not embedded._running
    assert not daemon._directory.exists()
    assert daemon._process is not None
    assert daemon._process.returncode == 0


def await_end(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:  # it has ended already
        return
    try:
        assert select.select([pidfd], [], [], WAIT_S)[0]
    finally:
        os.close(pidfd)


@pytest.mark.parametrize("end", ["sys.exit()", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_an_embedded_vattd_dies_with_a_process_that_never_closed_its_session(end: str, tmp_path: Path) -> None:
    # Connected from a thread that ends: the kernel ties a child to the thread that made it.
    script = f"""
import os, signal, sys, threading
from vattention import Session, embedded
sessions = []
connecting = threading.Thread(target=lambda: sessions.append(Session.connect("embedded", device="host")))
connecting.start()
connecting.join()
sessions[0].give_back(sessions[0].lease(2))
(daemon,) = embedded._running.values()
print(daemon._process.pid, daemon._directory, flush=True)
{end}
"""
    environ = {**os.environ, "VATTENTION_DAEMON": "embedded", "TMPDIR": str(tmp_path)}
    # vattd's stdout is no copy of ours, so ours ends with the script; its own end is seen through a pidfd.
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        daemon_pid, directory = process.stdout.readline().split()
        await_end(int(daemon_pid))
        alarms = process.stderr.read()
    assert not Path(directory).exists(), "its directory outlived it"
    assert not alarms


def test_an_embedded_vattd_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VATTENTION_DAEMON", "embedded")
    with pytest.raises(DaemonUnreachable, match=r"did not start: .*4\.88 KiB: it must be a power of two"):
        Session.connect("embedded", page_size_bytes=5000)
    assert not embedded._running
