"""`vattd start` and `vattd stop` for programs: one line on standard output, and all else on standard error."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import run_command

START = ["vattd", "start", "--gpu", "host", "--pool-max", "64MiB", "--metrics-address", "off", "-o", "json"]


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vattd-") as place:
        yield Path(place)


def test_in_the_foreground_the_line_comes_once_it_serves(place: Path) -> None:
    command = [sys.executable, "-m", *START, "--socket-dir", str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as vattd:
        assert vattd.stdout is not None
        said = json.loads(vattd.stdout.readline())
        assert said == {"socket_dir": str(place), "device": "host", "pid": vattd.pid, "metrics": "off"}
        assert (place / "host" / "engine.sock").exists()
        vattd.send_signal(signal.SIGTERM)
        assert vattd.stdout.read() == ""
        assert vattd.wait(20) == 0


def test_in_the_background_it_is_the_callers_line_and_not_the_logs(place: Path) -> None:
    started = run_command([*START, "--detach", "--socket-dir", str(place)])
    assert started.returncode == 0, started.stderr
    said = json.loads(started.stdout)
    try:
        log = Path(said["log"]).read_text()
        assert said["device"] == "host"
        assert str(said["pid"]) in started.stderr
        assert '"socket_dir"' not in log
    finally:
        stopped = run_command(["vattd", "stop", "--socket-dir", str(place), "-o", "json"])
    assert json.loads(stopped.stdout) == {"device": "host", "pid": said["pid"]}
    assert "has stopped" in stopped.stderr


def test_one_that_does_not_start_prints_nothing(place: Path) -> None:
    place.chmod(0o777)
    for more in ([], ["--detach"]):
        refused = run_command([*START, *more, "--socket-dir", str(place)])
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "no safe place" in " ".join(refused.stderr.split())
