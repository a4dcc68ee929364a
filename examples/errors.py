"""What can go wrong in the demo, other than bugs."""

from __future__ import annotations

from pathlib import Path

LOG_TAIL_BYTES = 2000


class DemoFailed(RuntimeError):
    """The demo did not show what it is there to show. The message says why, for people."""


class ChildFailed(DemoFailed):
    """A child ended, or said something else, when it should not have. The message has the end of its log."""

    def __init__(self, name: str, what: str, log: Path) -> None:
        tail = log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
        super().__init__(f"{name} {what}" + (f"; its last words:\n{tail}" if tail else ""))
