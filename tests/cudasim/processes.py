"""Running snippets of driver code in subprocesses of a World."""

import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from types import TracebackType

from .world import World

PRELUDE = "from guest import *\nimport ctypes, json, signal, time\n"
TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a snippet ended."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        """What it printed; fails the test with its stderr if it did not end well."""
        assert self.returncode == 0, self.stderr
        return self.stdout.splitlines()


def run(world: World, snippet: str, text: str = "", **extra_env: str) -> Outcome:
    """Run a snippet to its end, `text` on its stdin."""
    done = subprocess.run(
        _command(snippet),
        env=_env(world, extra_env),
        input=text,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


class Guest:
    """A running snippet that the test talks to, a line at a time. Leaving the context kills it."""

    def __init__(self, world: World, snippet: str, connection: socket | None = None) -> None:
        env = {} if connection is None else {"GUEST_SOCKET": str(connection.fileno())}
        self.process = subprocess.Popen(
            _command(snippet),
            env=_env(world, env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=() if connection is None else (connection.fileno(),),
        )
        self.pid = self.process.pid

    def __enter__(self) -> "Guest":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def hear(self) -> str:
        """The next line it says; empty if it ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def say(self, text: str = "go") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def finish(self) -> int:
        """Wait for its end; the exit status."""
        return self.process.wait(TIMEOUT_S)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait(TIMEOUT_S)


def _command(snippet: str) -> list[str]:
    return [sys.executable, "-c", PRELUDE + textwrap.dedent(snippet)]


def _env(world: World, extra: dict[str, str]) -> dict[str, str]:
    inherited = os.environ.get("PYTHONPATH")
    paths = [str(Path(__file__).parent), *([inherited] if inherited else [])]
    return os.environ | world.env() | {"PYTHONPATH": os.pathsep.join(paths)} | extra
