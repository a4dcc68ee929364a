"""Other users and other processes: what they are refused, and what becomes of a session however its process ends."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from tests.daemon import Vattd, pages_of
from tests.operator import Operator, operator
from tests.raw_engine import HandleSocket, RawEngine, close_all
from vatt.v1 import vatt_pb2 as pb

PAGE = 64 << 10
POOL = ["--pool-max", "16MiB", "--page-size", str(PAGE), "--headroom", "0"]
OTHER_UID = 12345

# Of every process here: it attaches as tenant b and leases 8 pages.
ENGINE = """
import os, signal, sys, time
from pathlib import Path
from tests.raw_engine import HandleSocket, RawEngine, reason_of
from vatt.sockets import Sockets
from vatt.v1 import vatt_pb2 as pb
sockets = Sockets(Path({directory!r}))
engine = RawEngine(sockets, "b")
runs = engine.lease(8)
def say(word):
    os.write(1, (word + "\\n").encode())
"""


@pytest.fixture
def vattd() -> Iterator[Vattd]:
    with Vattd(*POOL) as vattd:
        vattd.socket_dir.chmod(0o755)
        yield vattd


@pytest.fixture
def op(vattd: Vattd) -> Iterator[Operator]:
    with operator(vattd.sockets) as op:
        yield op


class Process:
    """A Python process with an engine in it. What is left of its group when the test is over is killed."""

    def __init__(self, vattd: Vattd, script: str) -> None:
        text = ENGINE.format(directory=str(vattd.sockets.directory)) + script
        self.process = subprocess.Popen(
            [sys.executable, "-B", "-c", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def all_back(status: pb.GetStatusResponse) -> bool:
    pages = pages_of(status)
    return not status.sessions and not pages["leased"] and not pages["quarantined"] and not pages["destroying"]


# Other users


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_user_gets_nothing_that_is_not_its_own(vattd: Vattd, op: Operator) -> None:
    op.reserve("mine")
    unspent = HandleSocket(vattd.sockets)
    with RawEngine(vattd.sockets, "mine") as engine:
        engine.lease(3)
        script = f"""
import grpc, json, os, socket, sys
from pathlib import Path
from tests.raw_engine import HandleSocket, RawEngine, reason_of
from vatt.sockets import Sockets
from vatt.v1 import vatt_pb2 as pb, vatt_pb2_grpc
os.setgroups([]); os.setgid(65534); os.setuid({OTHER_UID})
sockets = Sockets(Path({str(vattd.sockets.directory)!r}))
key = pb.SessionKey(session_id={engine.key.session_id!r}, secret={engine.key.secret!r})
guess = pb.SessionKey(session_id=key.session_id, secret=b"x" * 16)
def attach(tenant, **fields):
    try:
        RawEngine(sockets, tenant, **fields).close()
    except grpc.RpcError as error:
        return reason_of(error)
    return "attached"
def forbidden(path):
    try:
        os.open(path, os.O_RDONLY)
    except OSError as error:
        return type(error).__name__
    return "opened"
def admin():
    try:
        socket.socket(socket.AF_UNIX).connect(str(sockets.admin))
    except OSError as error:
        return type(error).__name__
    return "connected"
def lease():
    stub = vatt_pb2_grpc.EngineServiceStub(grpc.insecure_channel("unix:" + str(sockets.engine)))
    try:
        stub.LeasePages(pb.LeasePagesRequest(key=guess, request_id="a", page_count=1, purpose=2))
    except grpc.RpcError as error:
        return reason_of(error)
    return "leased"
state = Path({str(vattd.state_dir)!r})
print(json.dumps([
    attach("mine"), attach("own", token=b"x" * 16), attach("own", token={engine.handles.welcome.token!r}),
    attach("mine", resume=key), attach("own", resume=guess), lease(), admin(), forbidden(sockets.journal),
    forbidden(sockets.lock), forbidden(state / "host.tenants.json"), forbidden(state / "host.audit.jsonl"),
    attach("mine", token={unspent.welcome.token!r}), attach("own"),
]))
"""
        result = subprocess.run(
            [sys.executable, "-B", "-c", script], capture_output=True, text=True, timeout=100, check=False
        )
        assert result.returncode == 0, result.stderr
        denied = "PermissionError"
        assert json.loads(result.stdout) == [
            *(
                "TENANT_DENIED",
                "TOKEN_REFUSED",
                "TOKEN_REFUSED",
                "SESSION_UNKNOWN",
                "SESSION_UNKNOWN",
                "SESSION_UNKNOWN",
            ),
            *(denied, denied, denied, denied, denied),
            "attached",  # with our token, which makes the session ours: see below
            "attached",
        ]
        status = op.status()
        given = [session for session in status.sessions if session.session_id != engine.key.session_id]
        assert [(one.tenant, one.pid, one.uid) for one in given] == [("mine", os.getpid(), os.geteuid())], (
            "who gives its token away answers for the session; the other user's own has ended with its process"
        )
        engine.detach()
    unspent.close()


@pytest.mark.parametrize("mask", [0, 0o077])
def test_sockets_and_files_have_the_modes_they_should_whatever_the_umask(mask: int) -> None:
    before = os.umask(mask)
    try:
        vattd = Vattd(*POOL)
    finally:
        os.umask(before)
    with vattd, operator(vattd.sockets) as op:
        op.reserve("a")
        private = [vattd.sockets.journal, vattd.sockets.lock, *vattd.state_dir.iterdir()]
        assert {path.name for path in private} >= {"host.tenants.json", "host.audit.jsonl"}
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in private}
        assert set(modes.values()) == {0o600}, modes
        assert stat.S_IMODE(vattd.state_dir.stat().st_mode) == 0o700
        directory = 0o755 if os.geteuid() == 0 else 0o700
        assert stat.S_IMODE(vattd.sockets.directory.stat().st_mode) == directory
        assert stat.S_IMODE(vattd.sockets.admin.stat().st_mode) == 0o600
        for path in (vattd.sockets.engine, vattd.sockets.handles):
            assert stat.S_IMODE(path.stat().st_mode) == 0o666


# What a tenant does to its slab


def test_what_a_client_does_to_its_slab_hurts_nobody_else(vattd: Vattd, op: Operator) -> None:
    op.reserve("b")  # its slab stays when nobody is attached
    with RawEngine(vattd.sockets, "a") as innocent, ExitStack() as stack:
        runs = innocent.lease(8)
        _, fds = innocent.handles.pull([runs[0].run])
        stack.callback(close_all, fds)
        os.pwrite(fds[0], b"innocent" * 8192, runs[0].offset_bytes)
        script = """
import fcntl
_, [slab, *_] = engine.handles.pull([runs[0].run])
refused = []
for harm in (lambda: os.ftruncate(slab, 0), lambda: os.ftruncate(slab, os.fstat(slab).st_size + 4096),
             lambda: fcntl.fcntl(slab, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)):
    try:
        harm()
    except OSError as error:
        refused.append(type(error).__name__)
from vattention.vmm import libc
libc.punch(slab, runs[0].offset_bytes, 4096)  # its own page's memory
os.posix_fallocate(slab, 1 << 34, 64 << 20)  # far from any page that it was lent
say(" ".join(refused))
sys.stdin.read()
"""
        with Process(vattd, script) as hostile:
            assert hostile.hear() == "PermissionError PermissionError PermissionError"
            assert op.status().memory.pages_bytes >= 64 << 20, "what it took is seen"
            assert os.pread(fds[0], PAGE, runs[0].offset_bytes) == b"innocent" * 8192
        op.until(lambda status: [session.tenant for session in status.sessions] == ["a"])
        op.until(lambda status: status.memory.pages_bytes < 16 << 20)
        assert fcntl.fcntl(fds[0], fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        assert os.pread(fds[0], PAGE, runs[0].offset_bytes) == b"innocent" * 8192
        innocent.detach()
    with RawEngine(vattd.sockets, "b") as later:
        assert sum(leased.run.page_count for leased in later.lease(256)) == 256, "the pool is whole"
        later.detach()


# How processes end


@pytest.mark.parametrize(
    "script",
    [
        "os._exit(0)",  # between the lease and the pull
        "engine.handles.socket.send(pb.HandlePull(runs=[runs[0].run]).SerializeToString())\nos._exit(0)",
        "engine.handles.socket.send(b'\\x08')\nos.kill(os.getpid(), signal.SIGKILL)",
        "os.abort()",
    ],
    ids=["before the pull", "while its answer is made", "after half a message", "abort"],
)
def test_pages_are_back_when_a_process_ends(vattd: Vattd, op: Operator, script: str) -> None:
    with Process(vattd, script) as process:
        process.process.wait(60)
        op.until(all_back)


def test_a_stopped_process_keeps_its_session_and_goes_on_when_it_is_continued(vattd: Vattd, op: Operator) -> None:
    script = "say(engine.key.session_id)\nsys.stdin.readline()\nsay(str(len(engine.lease(1))))\nsys.stdin.read()"
    with Process(vattd, script) as process:
        session_id = process.hear()
        process.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.process.pid, os.WSTOPPED | os.WNOWAIT)
        with RawEngine(vattd.sockets, "a") as other:  # nobody waits for it
            other.give_back(other.lease(4))
            other.detach()
        assert op.session(session_id).leased_bytes == 8 * PAGE
        process.process.send_signal(signal.SIGCONT)
        assert process.process.stdin is not None
        process.process.stdin.write("\n")
        process.process.stdin.flush()
        assert process.hear() == "1"
        assert op.session(session_id).leased_bytes == 9 * PAGE
    op.until(all_back)


def test_a_child_that_lives_on_keeps_nothing_of_its_parents_session(vattd: Vattd, op: Operator) -> None:
    script = """
if os.fork():
    os._exit(0)
sys.stdin.readline()
try:
    delivery, fds = engine.handles.pull([runs[0].run])
    say(delivery.error.reason or "served")
except Exception as error:  # the connection is closed
    say(type(error).__name__)
sys.stdin.read()
"""
    with Process(vattd, script) as process:
        process.process.wait(60)
        op.until(all_back)
        assert process.process.stdin is not None
        process.process.stdin.write("\n")
        process.process.stdin.flush()
        assert process.hear() in ("BrokenPipeError", "ConnectionResetError", "DecodeError", "PAGE_NOT_HELD")


def test_a_process_that_becomes_another_program_is_fenced_and_its_pages_come_when_it_ends(
    vattd: Vattd, op: Operator
) -> None:
    script = "say(engine.key.session_id)\nos.execvp('sleep', ['sleep', '600'])"
    with Process(vattd, script) as process:
        session_id = process.hear()
        op.until(lambda status: [session.state for session in status.sessions] == ["fenced"])
        assert op.session(session_id).leased_bytes == 8 * PAGE, "its memory may still be mapped, for all we know"
        process.process.kill()
        op.until(all_back)
