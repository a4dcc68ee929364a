"""Answers on their way over the handle socket: which of them lie unread.

Descriptors in an answer that nobody has read count against vattd (RLIMIT_NOFILE, see unix(7)), also when it has closed
the connection. So an answer is made when the one before it has been read, not earlier, and only so many with
descriptors are a user's at a time. Closing the connection of who does not read would free nothing.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import fcntl
import select
import socket
import sys
import termios
from collections.abc import Hashable, Sequence
from contextlib import suppress
from weakref import WeakValueDictionary

from vatt.errors import SystemLimit
from vattd.closer import Closer

# Of a user's answers with descriptors. Who reads is done within a moment, so others of the same user hardly wait.
MOST_UNREAD = 16
# Somebody else of the same user must read first: for so long at most, since a client waits 10 s for its answer.
PLACE_WITHIN_S = 5.0


class _Place(enum.Enum):
    """One of the user's MOST_UNREAD, as a connection has it: its answer is being made, or lies unread."""

    NONE = enum.auto()
    TAKEN = enum.auto()
    FULL = enum.auto()


class _User:
    """`free` are the places that are left, `full` the outboxes whose answer was unread when last looked at."""

    def __init__(self) -> None:
        self.free = asyncio.Semaphore(MOST_UNREAD)
        self.full: set[Outbox] = set()


class Outboxes:
    """Those of all connections. Belongs to the event loop.

    A client that reads is seldom waited for, so an outbox is watched only while somebody waits for it to be read.
    """

    def __init__(self, closer: Closer) -> None:
        self.closer = closer
        self._loop = asyncio.get_running_loop()
        # The loop's own selector tells of levels, and a socket is writable long before all that it sent has been read.
        # Edges are told whenever a packet has been.
        self._edges = select.epoll()
        self._watched: dict[int, Outbox] = {}  # by descriptor
        self._users: WeakValueDictionary[Hashable, _User] = WeakValueDictionary()
        self._loop.add_reader(self._edges.fileno(), self._look)

    def open(self, connection: socket.socket, uid: int) -> Outbox:
        """One for a user's new connection, a non-blocking one, which is the outbox's to close."""
        return Outbox(self, connection, uid, self._users.setdefault(uid, _User()))

    def close(self) -> None:
        """After all connections: what lies unread is left alone."""
        for outbox in list(self._watched.values()):
            outbox.abandon()
        self._loop.remove_reader(self._edges.fileno())
        self._edges.close()

    def watch(self, fd: int, outbox: Outbox) -> None:
        """Have it look whenever something of it has been read. Raises OSError."""
        if fd not in self._watched:
            self._edges.register(fd, select.EPOLLOUT | select.EPOLLET)
            self._watched[fd] = outbox

    def unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._edges.unregister(fd)

    def _look(self) -> None:
        for fd, _ in self._edges.poll(0):
            self._watched[fd].look()


class Outbox:
    """One connection's: at most one answer lies in it. Invariant: it has one of the user's places unless `_place` is
    NONE."""

    def __init__(self, outboxes: Outboxes, connection: socket.socket, uid: int, user: _User) -> None:
        self._outboxes, self._socket, self._uid, self._user = outboxes, connection, uid, user
        self._place = _Place.NONE
        self._is_closed = False
        self._changed = asyncio.Event()

    async def until_read(self) -> None:
        """Wait until the process has read all that it was sent. Raises OSError."""
        while not self.watch():
            self._changed.clear()
            await self._changed.wait()

    async def take_place(self) -> None:
        """Wait for room for an answer with descriptors, the next to be sent; all before it must have been read.

        Raises SystemLimit, OSError.
        """
        if self._user.free.locked():
            for outbox in list(self._user.full):
                outbox.watch()
        try:
            if self._user.free.locked():
                await asyncio.wait_for(self._user.free.acquire(), PLACE_WITHIN_S)
            else:
                await self._user.free.acquire()  # at once
        except asyncio.TimeoutError as error:
            raise SystemLimit(
                f"{MOST_UNREAD} answers with file descriptors lie unread by processes of uid {self._uid}, the most "
                "that may: have those go on, or end them"
            ) from error
        if self._is_closed:  # before Python 3.12, wait_for may take no notice of being cancelled
            self._user.free.release()
            raise ConnectionAbortedError("the connection has been closed")
        self._place = _Place.TAKEN

    def send(self, packet: bytes, fds: Sequence[int]) -> None:
        """All before must have been read: so there is room. Raises OSError, SystemLimit."""
        try:
            socket.send_fds(self._socket, [packet], fds)
        except OSError as error:
            if not fds or error.errno != errno.ETOOMANYREFS:
                raise
            raise SystemLimit(
                "too many file descriptors are on their way to processes that do not read them "
                "(RLIMIT_NOFILE of vattd): raise LimitNOFILE, or end those processes"
            ) from error
        if self._place is _Place.TAKEN:
            self._place = _Place.FULL
            self._user.full.add(self)
            if self._user.free.locked():  # somebody may wait
                self.watch()

    def look(self) -> bool:
        """Has all been read? Then the place is free."""
        self._changed.set()
        if self._unread_bytes():
            return False
        self._outboxes.unwatch(self._socket.fileno())
        if self._place is _Place.FULL:
            self._leave_place()
        if self._is_closed:
            self.abandon()
        return True

    def watch(self) -> bool:
        """Look now, and again when something has been read, until all has. Raises OSError."""
        if self.look():
            return True
        self._outboxes.watch(self._socket.fileno(), self)
        return self.look()  # or it is never told of

    def close(self) -> None:
        """No more is sent. What lies unread keeps its place until it has been read, or its reader is gone."""
        self._is_closed = True
        if self._place is not _Place.FULL:
            self.abandon()
        elif not self.watch():
            with suppress(OSError):  # the other side has done so already
                self._socket.shutdown(socket.SHUT_RDWR)

    def abandon(self) -> None:
        """As `close`, but what lies unread counts no more."""
        if self._place is not _Place.NONE:
            self._leave_place()
        self._outboxes.unwatch(self._socket.fileno())
        self._outboxes.closer.close_connection(self._uid, self._socket)

    def _leave_place(self) -> None:
        self._place = _Place.NONE
        self._user.full.discard(self)
        self._user.free.release()

    def _unread_bytes(self) -> int:
        """As the kernel counts: with what a packet itself costs. It tells of the last packet's end while it still
        counts 1 for it."""
        answer = fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4))
        unread_bytes = int.from_bytes(answer, sys.byteorder)
        return unread_bytes if unread_bytes > 1 else 0
