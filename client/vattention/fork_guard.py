"""fork() and the library, in one place.

A forked child has none of the session's mappings (the kernel drops them: MADV_DONTFORK on the host, no context on
CUDA), none of its threads, and a channel that is still the parent's. So everything made before the fork is closed to
the child: each object keeps the `Birth` it was made at, and asks it first in every public method, before it takes any
lock (a lock that another thread held at the fork is never released in the child).

No fork may come between an mmap and its MADV_DONTFORK, or the child would keep a page alive: the locks made by
`new_driver_lock` are taken before a fork and released after it, on both sides.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Protocol

from vatt.errors import ForkedSession


class DriverLock(AbstractContextManager[bool], Protocol):
    """What a reentrant lock is to us."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...


class Abandoned(Protocol):
    """Something of the parent's that a child holds a copy of."""

    def abandon(self) -> None:
        """Called in the child: close the child's copies of file descriptors; tell nobody."""


# Forks between this process and the one that imported the library first.
_depth = 0
_registry_lock = threading.RLock()
_driver_locks: weakref.WeakSet[DriverLock] = weakref.WeakSet()
_abandoned_in_child: weakref.WeakSet[Abandoned] = weakref.WeakSet()
_held_for_fork: list[DriverLock] = []
# The depth of the process that opened the first gRPC channel.
_channel_depth: int | None = None
_WAY_OUT = (
    "gRPC does not work in a child forked after that: start the child by spawn or exec (for multiprocessing, "
    "set_start_method('spawn')), or fork before the first session is connected"
)


class Birth:
    """The process that an object was made in."""

    __slots__ = ("_depth",)

    def __init__(self) -> None:
        self._depth = _depth

    @property
    def is_here(self) -> bool:
        return self._depth == _depth

    def check(self) -> None:
        """Raises ForkedSession in a child of the process that the object was made in."""
        if self._depth != _depth:
            raise ForkedSession(f"this object belongs to the parent process: its pages are not mapped here. {_WAY_OUT}")


def new_driver_lock() -> DriverLock:
    """A reentrant lock that no fork happens under."""
    lock: DriverLock = threading.RLock()
    with _registry_lock:
        _driver_locks.add(lock)
    return lock


def abandon_in_child(thing: Abandoned) -> None:
    """Have `thing.abandon()` called in every forked child, for as long as somebody keeps the thing."""
    with _registry_lock:
        _abandoned_in_child.add(thing)


def about_to_open_a_channel() -> None:
    """Raises ForkedSession in a child whose parent has used gRPC.

    Measured with grpcio 1.85.1: with a stream open in the parent, a child that opens a channel of its own dies by
    SIGSEGV in about one run of six, and with gRPC's fork support switched off it hangs each time.
    """
    global _channel_depth
    if _channel_depth is not None and _channel_depth != _depth:
        raise ForkedSession(f"a session was open in the parent process when this one was forked. {_WAY_OUT}")
    _channel_depth = _depth


def _before() -> None:
    _registry_lock.acquire()
    for lock in list(_driver_locks):
        lock.acquire()
        _held_for_fork.append(lock)


def _release() -> None:
    while _held_for_fork:
        _held_for_fork.pop().release()
    _registry_lock.release()


def _after_in_child() -> None:
    global _depth
    _depth += 1
    for thing in list(_abandoned_in_child):
        _quietly(thing.abandon)
    _abandoned_in_child.clear()
    _release()


def _quietly(action: Callable[[], None]) -> None:
    with suppress(OSError):  # the child's copy is gone already, which is what we want
        action()


os.register_at_fork(before=_before, after_in_parent=_release, after_in_child=_after_in_child)
