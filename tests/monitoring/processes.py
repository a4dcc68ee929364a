"""Prometheus and Alertmanager of this machine, as children on loopback, each with its data in a directory of ours."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

READY_WITHIN_S = 30.0
END_WITHIN_S = 15.0
INSTALL = "apt-get install --no-install-recommends prometheus prometheus-alertmanager chromium"

T = TypeVar("T")
S = TypeVar("S", bound="Server")


class NotInstalled(Exception):
    """A program of the machine is missing; says what to type."""

    def __init__(self, program: str) -> None:
        super().__init__(f"{program} is not installed: {INSTALL}")


def program(*names: str) -> str:
    """The first of these that is there. Raises NotInstalled."""
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    raise NotInstalled(names[0])


def eventually(what: str, look: Callable[[], T | None], within_s: float) -> T:
    """The first answer that is not None or False. Raises AssertionError with `what` when the time is over."""
    deadline_s = time.monotonic() + within_s
    while True:
        answer = look()
        if answer is not None and answer is not False:
            return answer
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {within_s:.0f} s: {what}")
        time.sleep(0.05)


def free_port() -> int:
    """Neither server tells which port it got for 0, so one is chosen for it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A child with an HTTP address on loopback, from when it is ready; ended by pid on exit."""

    def __init__(self, command: Sequence[str], port: int, log: Path) -> None:
        self.url, self._log = f"http://127.0.0.1:{port}", log
        with log.open("wb") as out:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            eventually(f"{command[0]} is ready; it said:\n{log.read_text()}", self._is_ready, READY_WITHIN_S)
        except BaseException:
            self.close()
            raise

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"ended at once with status {self._process.returncode}:\n{self._log.read_text()}")
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def get(self, path: str, **parameters: Any) -> Any:
        """The JSON at a path. Raises AssertionError with the server's words for why it refuses."""
        query = f"?{urllib.parse.urlencode(parameters, doseq=True)}" if parameters else ""
        try:
            with urllib.request.urlopen(f"{self.url}{path}{query}", timeout=20) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}{query}: {error.read().decode()}") from error

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(END_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Prometheus(Server):
    def __init__(self, directory: Path, config: Path, consoles: Path) -> None:
        port = free_port()
        command = [
            program("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={directory / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{port}",
            f"--web.console.templates={consoles}",
            f"--web.console.libraries={consoles}",
        ]
        super().__init__(command, port, directory / "prometheus.log")

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Now: samples with `metric` and `value`."""
        return list(self.get("/api/v1/query", query=expr)["data"]["result"])

    def query_range(self, expr: str, start_s: float, end_s: float, step_s: float) -> list[dict[str, Any]]:
        answer = self.get("/api/v1/query_range", query=expr, start=start_s, end=end_s, step=step_s)
        return list(answer["data"]["result"])


class Alertmanager(Server):
    def __init__(self, directory: Path, config: Path, port: int) -> None:
        command = [
            program("prometheus-alertmanager", "alertmanager"),
            f"--config.file={config}",
            f"--storage.path={directory / 'alertmanager'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",  # alone
        ]
        super().__init__(command, port, directory / "alertmanager.log")
