"""Waiting for a vattd to reach a state: asked again and again, shown where somebody watches, ended by Ctrl-C."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from rich.console import Console

from vatt.errors import VattError
from vatt.v1 import vatt_pb2 as pb
from vattctl.daemon import Admin

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 0.5


def wait_for(
    admin: Admin, what_is_left: Callable[[pb.GetStatusResponse], str], within_s: float, when_interrupted: str
) -> str:
    """Until nothing is left, or for so long. Returns what is left then, in words; empty: nothing.

    Raises VattError with `when_interrupted` after Ctrl-C, and what the daemon refuses.
    """
    with interrupts() as is_interrupted, _watched() as show:
        deadline_s, pause_s = time.monotonic() + within_s, FIRST_PAUSE_S
        while not is_interrupted():
            left = what_is_left(admin.status())
            remaining_s = deadline_s - time.monotonic()
            if not left or remaining_s <= 0:
                return left
            show(left)
            time.sleep(min(pause_s, remaining_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    raise VattError(f"stopped waiting: {when_interrupted}")


@contextmanager
def interrupts(when_first: Callable[[], object] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Was Ctrl-C typed? It raises nothing the first time: what is raised while gRPC or a finalizer runs gets lost. It
    calls `when_first`, in the middle of whatever is done."""
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:  # vattd does not answer, and somebody insists
            raise KeyboardInterrupt
        came = True
        when_first()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _watched() -> Iterator[Callable[[str], None]]:
    """One line that changes, on a terminal; nothing elsewhere."""
    console = Console(stderr=True, highlight=False)
    with ExitStack() as stack:
        status = stack.enter_context(console.status("")) if console.is_terminal else None

        def show(words: str) -> None:
            if status is not None:
                status.update(words.replace("[", r"\["))

        yield show
