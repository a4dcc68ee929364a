"""A private vattd, for one process that has none to share: a child on a temporary socket, dying with its parent.

It is an ordinary vattd on the ordinary wire; only who starts it differs. All sessions of a process that ask for the
same device share it, and it ends with the last of them.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol

from vatt.errors import DaemonUnreachable
from vatt.sockets import MAX_PATH_BYTES, Sockets
from vattention import fork_guard

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
_LOG_TAIL_BYTES = 2000


@dataclass(frozen=True, slots=True)
class Ready:
    """What vattd writes once it serves, or why it does not."""

    socket_dir: str
    device: str
    pid: int

    @classmethod
    def parse(cls, line: bytes, log_tail: Callable[[], str]) -> Ready:
        try:
            facts = json.loads(line)
            if "error" in facts:
                raise DaemonUnreachable(f"the embedded vattd did not start: {facts['error']}")
            return cls(str(facts["socket_dir"]), str(facts["device"]), int(facts["pid"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DaemonUnreachable(f"the embedded vattd did not start: {log_tail() or 'it wrote nothing'}") from error


class StreamUser(Protocol):
    def expect_end(self) -> None:
        """The stream with this vattd is about to end, and that is no news."""


class EmbeddedDaemon:
    """One child vattd. Made by `acquire`, given up by `release`; the last one out ends it. Or made for one use alone,
    with `options` for `vattd start`, and closed by whoever made it."""

    def __init__(self, device: str | None, options: Sequence[str] = ()) -> None:
        self._birth = fork_guard.Birth()
        self.users = 0
        self.connections: weakref.WeakSet[StreamUser] = weakref.WeakSet()
        with ExitStack() as undo:
            self._directory = Path(tempfile.mkdtemp(prefix="vattd-", dir=_short_temporary_dir()))  # mode 0700
            undo.callback(shutil.rmtree, self._directory, ignore_errors=True)
            self._log = self._directory / "vattd.log"
            self._process: subprocess.Popen[bytes] | None = None
            undo.callback(self._stop)
            ready = self._start(device, options)
            self.sockets = Sockets(self._directory / ready.device)
            undo.pop_all()

    @property
    def is_here(self) -> bool:
        """Whether this process made it, and no parent of it."""
        return self._birth.is_here

    def close(self) -> None:
        """End the child and remove its sockets. Idempotent; in a forked child it does nothing."""
        if not self.is_here:
            return
        for connection in list(self.connections):
            connection.expect_end()
        self._stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> EmbeddedDaemon:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, device: str | None, options: Sequence[str]) -> Ready:
        if not sys.executable:
            raise DaemonUnreachable("this process does not know its Python: start vattd yourself with `vattd start`")
        read_fd, write_fd = os.pipe()
        with open(read_fd, "rb") as ready, open(write_fd, "wb") as write_end:
            command = [sys.executable, "-m", "vattd", "start", "--socket-dir", str(self._directory)]
            command += ["--gpu", device] if device is not None else []
            command += ["--metrics-address", "off", "--ready-fd", str(write_fd), "--exit-with-parent"]
            command += options
            self._spawn(command, write_fd)
            write_end.close()
            return Ready.parse(_read_line(ready), self._log_tail)

    def _spawn(self, command: list[str], ready_fd: int) -> None:
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    pass_fds=(ready_fd,),
                    # Ctrl-C is for the engine: it detaches first.
                    start_new_session=True,
                    env={**os.environ, "PYTHONSAFEPATH": "1"},  # not whatever is called vattd in this directory
                )
        except OSError as error:
            raise DaemonUnreachable(f"the embedded vattd did not start: {error}") from error

    def _stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _log_tail(self) -> str:
        try:
            return self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        except FileNotFoundError:  # a vattd that does not start takes the folder away
            return ""


_lock = threading.Lock()
_running: dict[str | None, EmbeddedDaemon] = {}


def acquire(device: str | None, page_size_bytes: int | None = None) -> EmbeddedDaemon:
    """This process's vattd for `device`, started if there is none yet, with the page size asked for. Every acquire
    needs its release."""
    with _lock:
        for key, stale in list(_running.items()):
            if not stale.is_here:  # the parent's, seen from a forked child
                del _running[key]
        if device not in _running:
            options = () if page_size_bytes is None else ("--page-size", str(page_size_bytes))
            _running[device] = EmbeddedDaemon(device, options)
        daemon = _running[device]
        daemon.users += 1
        return daemon


def release(daemon: EmbeddedDaemon) -> None:
    with _lock:
        daemon.users -= 1
        if daemon.users == 0:
            for key in [key for key, one in _running.items() if one is daemon]:
                del _running[key]
            daemon.close()


def _close_all() -> None:
    for daemon in list(_running.values()):
        daemon.close()


atexit.register(_close_all)


def _read_line(ready: IO[bytes]) -> bytes:
    """vattd's one line; empty if it ends, or takes too long, before it writes one."""
    readable, _, _ = select.select([ready], [], [], START_TIMEOUT_S)
    return ready.readline() if readable else b""


def _short_temporary_dir() -> str:
    """Socket paths are short: a long TMPDIR (a job scheduler's) leaves no room for a device's name."""
    longest_rest = "/vattd-xxxxxxxx/GPU-00000000-0000-0000-0000-000000000000/handles.sock"
    chosen = tempfile.gettempdir()
    return chosen if len(os.fsencode(chosen)) + len(longest_rest) <= MAX_PATH_BYTES else "/tmp"
