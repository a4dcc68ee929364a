"""vattctl as an operator runs it, against a daemon of the test's: piped, on a terminal, or beside the test."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests.daemon import Vattd, run_command

WITHIN_S = 20.0


def vattctl(vattd: Vattd, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Piped, in 80 columns."""
    command = ["vattctl", *arguments, "--socket-dir", str(vattd.socket_dir)]
    return run_command(command, {"COLUMNS": "80", **(env or {})})


def done(vattd: Vattd, *arguments: str) -> str:
    """What it prints; it must exit 0."""
    result = vattctl(vattd, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def refused(vattd: Vattd, *arguments: str, status: int = 1, env: Mapping[str, str] | None = None) -> str:
    """What it says on stderr, in one line; it must exit with this status."""
    result = vattctl(vattd, *arguments, env=env)
    assert result.returncode == status, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def answer(vattd: Vattd, *arguments: str) -> dict[str, Any]:
    """The JSON of the one daemon."""
    [one] = json.loads(done(vattd, *arguments, "-o", "json"))["daemons"]
    return dict(one)


def tenants(vattd: Vattd) -> dict[str, Any]:
    return {tenant["name"]: tenant for tenant in answer(vattd, "tenants")["tenants"]}


def audit(vattd: Vattd) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (vattd.state_dir / "host.audit.jsonl").read_text().splitlines()]


@dataclass
class Terminal:
    """A vattctl whose stdin, stdout and stderr are a terminal."""

    process: subprocess.Popen[bytes]
    fd: int
    seen: str = field(default="")

    def read_until(self, words: str) -> None:
        deadline_s = time.monotonic() + WITHIN_S
        while words not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, deadline_s - time.monotonic()))
            assert ready, f"no {words!r} in {self.seen!r}"
            try:
                self.seen += os.read(self.fd, 4096).decode(errors="replace")
            except OSError:  # EIO: the other side has ended
                assert words in self.seen, f"no {words!r} in {self.seen!r}"

    def read_to_end(self) -> None:
        with suppress(OSError):  # EIO: the other side has ended
            while select.select([self.fd], [], [], WITHIN_S)[0]:
                self.seen += os.read(self.fd, 4096).decode(errors="replace")

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def wait(self) -> int:
        return self.process.wait(WITHIN_S)


@contextmanager
def on_a_terminal(vattd: Vattd, *arguments: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "vattctl", *arguments, "--socket-dir", str(vattd.socket_dir)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(ours)


@contextmanager
def running(vattd: Vattd, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Beside the test, piped."""
    command = [sys.executable, "-m", "vattctl", *arguments, "--socket-dir", str(vattd.socket_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@contextmanager
def engine_process(vattd: Vattd, tenant: str, page_count: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """An engine in a process of its own, that leases and then sleeps, and its session's id."""
    code = (
        "import sys, time; from tests.raw_engine import RawEngine; from vatt.sockets import find_daemon; "
        "from pathlib import Path; "
        "engine = RawEngine(find_daemon([Path(sys.argv[1])], None), sys.argv[2]); "
        "engine.lease(int(sys.argv[3])); print(engine.key.session_id, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(vattd.socket_dir), tenant, str(page_count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()
