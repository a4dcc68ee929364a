"""Closing what other processes may have filled.

A descriptor that lies unread in a socket, or that was received, is closed with the last of its holders, and that may
take as long as its maker likes: a TCP socket that lingers, a file of a file system that some process serves. Linux 6.16
lets us refuse descriptors altogether (SO_PASSRIGHTS); before, only a thread that nobody waits for can close them.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from collections.abc import Hashable, Iterable
from contextlib import suppress


class Closer:
    """Closes descriptors in a thread for each user, so that nobody waits for another's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[Hashable, deque[int]] = {}  # of those whose thread is at work; the one it closes comes first

    def close(self, user: Hashable, fds: Iterable[int]) -> None:
        """Ours no more."""
        with self._lock:
            queue = self._queues.setdefault(user, deque())
            is_idle = not queue
            queue.extend(fds)
        if is_idle:
            try:
                threading.Thread(target=self._run, args=(user,), name="vattd-closer", daemon=True).start()
            except RuntimeError:  # no thread to be had
                self._run(user)

    def close_connection(self, user: Hashable, connection: socket.socket) -> None:
        """As `close`; at once if nothing lies in it."""
        with suppress(OSError):  # the other end has done so
            connection.shutdown(socket.SHUT_RD)
        if _is_empty(connection):
            connection.close()
        else:
            self.close(user, [connection.detach()])

    def count_of(self, user: Hashable) -> int:
        """How many of the user's are not closed yet."""
        with self._lock:
            return len(self._queues.get(user, ()))

    def _run(self, user: Hashable) -> None:
        queue = self._queues[user]
        while True:
            with suppress(OSError):  # its maker's word; it is closed all the same
                os.close(queue[0])
            with self._lock:
                queue.popleft()
                if not queue:
                    del self._queues[user]
                    return


def _is_empty(connection: socket.socket) -> bool:
    """Does it hold neither a byte nor a descriptor to be read? More cannot come."""
    try:
        packet, _, flags, _ = connection.recvmsg(1, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return True
    return not packet and not flags & socket.MSG_CTRUNC
