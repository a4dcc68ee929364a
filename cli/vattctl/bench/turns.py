"""How long something is repeated, who watches, and how it is broken off between two repetitions, never within one."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Called between two turns with the part that is done, 0 to 1; it may raise.
Tick = Callable[[float], None]


class Interrupted(Exception):
    """Somebody pressed Ctrl-C, or the process is to end."""


def turns(seconds: float, least: int, tick: Tick, now_s: Callable[[], float] = time.monotonic) -> Iterator[int]:
    """Turns until the time is over, but at least so many."""
    began_s = now_s()
    for number in itertools.count():
        passed_s = now_s() - began_s
        if passed_s >= seconds and number >= least:
            return
        tick(min(1.0, passed_s / seconds) if seconds > 0 else 1.0)
        yield number


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """What raises Interrupted once SIGINT or SIGTERM has come, where it is safe to: within a driver call it never is,
    since nobody would know whether it made a page. A second one ends the process as ever."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield lambda: None
        return
    came: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, before[signal.Signals(number)])

    def check() -> None:
        if came:
            raise Interrupted

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
