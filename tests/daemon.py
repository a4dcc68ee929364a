"""A real vattd in a process of its own, for tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import grpc

from vatt.sockets import Sockets
from vatt.v1 import vatt_pb2 as pb
from vatt.v1 import vatt_pb2_grpc

READY_WITHIN_S = 20.0


class Vattd:
    """`vattd start` with a short, private socket directory; ended by pid and cleaned up on exit.

    `env` adds to the environment (a simulated driver's); `log` is what it printed, for when a test fails.
    """

    def __init__(self, *arguments: str, device: str | None = "host", env: Mapping[str, str] | None = None) -> None:
        # Not pytest's tmp_path: a socket's path must stay short.
        self.socket_dir = Path(tempfile.mkdtemp(prefix="vattd-"))
        self.log_path = self.socket_dir / "vattd.log"
        self.state_dir = self.socket_dir / "state"  # where vattd keeps it by itself
        self._command = [sys.executable, "-m", "vattd", "start", "--socket-dir", str(self.socket_dir)]
        if device is not None:
            self._command += ["--gpu", device]
        if "--metrics-address" not in arguments:
            self._command += ["--metrics-address", "off"]
        self._command += arguments
        self._env = {**os.environ, **(env or {})}
        self.start()

    def start(self, *more: str) -> None:
        """Also after an end: the same command in the same place."""
        ready, ready_child = os.pipe()
        with open(ready) as answers, open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [*self._command, *more, "--ready-fd", str(ready_child)],
                pass_fds=[ready_child],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
            )
            os.close(ready_child)
            line = answers.readline()
        self.ready: dict[str, str] = json.loads(line) if line else {"error": self.log}
        if "error" in self.ready:
            self.close()
            raise RuntimeError(f"vattd did not start: {self.ready['error']}")
        self.sockets = Sockets(self.socket_dir / self.ready["device"])

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def pid(self) -> int:
        return self.process.pid

    @contextmanager
    def admin(self) -> Iterator[Callable[[], pb.GetStatusResponse]]:
        """Asks for status over and over on one connection."""
        with grpc.insecure_channel(f"unix:{self.sockets.admin}") as channel:
            stub = vatt_pb2_grpc.AdminServiceStub(channel)
            yield lambda: stub.GetStatus(pb.GetStatusRequest(), timeout=10)

    def status(self) -> pb.GetStatusResponse:
        with self.admin() as ask:
            return ask()

    def pages(self) -> dict[str, int]:
        """Pages by state."""
        return pages_of(self.status())

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(READY_WITHIN_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        shutil.rmtree(self.socket_dir)

    def __enter__(self) -> Vattd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.log)
        self.close()


def pages_of(status: pb.GetStatusResponse) -> dict[str, int]:
    return {row.state: row.page_count for row in status.pool.pages_by_state}


def patched(directory: Path, script: str) -> dict[str, str]:
    """The environment of a vattd that runs this Python first: for what it does not do by itself."""
    (directory / "sitecustomize.py").write_text(script)
    return {"PYTHONPATH": os.pathsep.join([str(directory), *sys.path])}


def run_command(arguments: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m ...`, its output captured."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
