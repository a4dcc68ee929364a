"""Commands whose reader goes away before they have written, as `| head -1` does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.daemon import Vattd

COMMANDS = [
    ["status"],
    ["status", "-o", "json"],
    ["tenants"],
    ["top", "--once", "--interval", "100ms"],
    ["top", "--once", "--interval", "100ms", "-o", "json"],
    ["reserve", "chat", "--min", "1MiB"],
    ["unreserve", "chat"],
    ["drain"],
    ["drain", "--resume"],
    ["shrink"],
]


@pytest.fixture(scope="module")
def vattd() -> Iterator[Vattd]:
    with Vattd("--pool-max", "64MiB") as one:
        yield one


def run_unread(*arguments: str) -> tuple[int, str]:
    """The exit status and stderr of a vattctl whose stdout nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "vattctl", *arguments]
        result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    return result.returncode, result.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_ends_quietly_and_as_done(vattd: Vattd, command: list[str]) -> None:
    assert run_unread(*command, "--socket-dir", str(vattd.socket_dir)) == (0, "")


def test_help_does_too() -> None:
    assert run_unread("--help") == (0, "")


def test_what_follows_for_ever_ends_too(vattd: Vattd) -> None:
    assert run_unread("events", "-f", "--socket-dir", str(vattd.socket_dir)) == (0, "")


def test_what_is_said_on_stderr_is_still_said(vattd: Vattd) -> None:
    status, said = run_unread("evict", "1-1", "--yes", "--socket-dir", str(vattd.socket_dir))
    assert status == 1
    assert "no session '1-1'" in said


def test_a_character_that_the_encoding_lacks_is_no_error(vattd: Vattd) -> None:
    command = [sys.executable, "-m", "vattctl", "top", "--once", "--interval", "100ms"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    result = subprocess.run(
        [*command, "--socket-dir", str(vattd.socket_dir)], env=environment, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert b"LEASED?" in result.stdout


def test_no_stdout_at_all_is_no_error(vattd: Vattd) -> None:
    words = f"{sys.executable} -m vattctl status --socket-dir {vattd.socket_dir} >&-"
    assert subprocess.run(["/bin/sh", "-c", words], capture_output=True, check=False).returncode == 0
