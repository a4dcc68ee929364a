"""Chromium without a window: what a page becomes once its script has run, as text or as a picture."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.monitoring.processes import program

RUN_WITHIN_S = 90.0
# Of the page's own clock, which stands still while requests are under way: time for its first drawing.
SETTLE_MS = 10_000


def dom(url: str) -> str:
    return _run(url, ["--dump-dom"])


def picture(url: str, path: Path, width: int, height: int, *, scale: float = 1.0) -> None:
    """A PNG."""
    options = [f"--screenshot={path}", f"--window-size={width},{height}", f"--force-device-scale-factor={scale}"]
    _run(url, [*options, "--hide-scrollbars"])
    if not path.exists():
        raise AssertionError(f"chromium made no picture of {url}")


def _run(url: str, options: Sequence[str]) -> str:
    # As root it has no sandbox; the page is our own.
    command = [program("chromium"), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with tempfile.TemporaryDirectory(prefix="vattd-chromium-") as profile:
        command += [f"--user-data-dir={profile}", f"--virtual-time-budget={SETTLE_MS}", *options, url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_WITHIN_S, check=False)
    if done.returncode != 0:
        raise AssertionError(f"chromium ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout
