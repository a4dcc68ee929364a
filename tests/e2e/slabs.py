"""The memory that is really in vattd's slabs, whoever knows of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress

from tests.e2e.worker import STRAGGLERS_BYTE, is_slab

PAGE = 64 << 10


def pages_in_slabs(pids: Iterable[int]) -> int:
    """Pages in all slabs that these processes have open, less those that are a straggler's.

    Once its parent has ended, a straggler can put memory where no page is; some of it outlives the straggler, until
    vattd punches there again. Nobody lent it, so it is known by what it holds.
    """
    in_use_bytes: dict[int, int] = {}  # by inode
    for pid in pids:
        with suppress(OSError):  # it has just ended
            for name in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    path = f"/proc/{pid}/fd/{name}"
                    if is_slab(path):
                        with open(path, "rb", buffering=0) as slab:
                            facts = os.fstat(slab.fileno())
                            in_use_bytes[facts.st_ino] = facts.st_blocks * 512 - _stragglers_bytes(slab.fileno())
    return sum(in_use_bytes.values()) // PAGE


def _stragglers_bytes(slab: int) -> int:
    size_bytes = 0
    for begin, end in _data(slab):
        for at in range(begin // PAGE * PAGE, end, PAGE):
            if _is_stragglers(slab, at):
                size_bytes += min(end, at + PAGE) - max(begin, at)
    return size_bytes


def _is_stragglers(slab: int, at: int) -> bool:
    """It writes from the page's begin on, and may have been killed before the end."""
    if os.pread(slab, 1, at) != STRAGGLERS_BYTE:
        return False
    return not os.pread(slab, PAGE, at).strip(STRAGGLERS_BYTE).strip(b"\0")


def _data(slab: int) -> Iterator[tuple[int, int]]:
    """Where something was written, from and to."""
    end = 0
    while True:
        try:
            begin = os.lseek(slab, end, os.SEEK_DATA)
        except OSError:  # nothing after this
            return
        end = os.lseek(slab, begin, os.SEEK_HOLE)
        yield begin, end
