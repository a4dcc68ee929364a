"""Closing what other processes may have filled.

A descriptor that lies unread in a socket, or that was received, is closed with the last of its holders, and that may
take as long as its maker likes: a TCP socket that lingers, a file of a file system that some process serves. Linux 6.16
lets us refuse descriptors altogether (SO_PASSRIGHTS); before, only a thread that nobody waits for can close them.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections import deque
from collections.abc import Hashable, Iterable
from contextlib import suppress
from pathlib import Path

SO_PASSRIGHTS = 83  # asm-generic/socket.h; Python has no name for it yet


def pass_descriptors(connection: socket.socket, allowed: bool) -> bool:
    """May processes send descriptors over this socket, and those that it accepts? Who may not gets EPERM.

    False: the kernel cannot be told.
    """
    try:
        connection.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, int(allowed))
    except OSError:
        return False
    return True


def refuse_descriptors_at(path: Path) -> bool:
    """As `pass_descriptors`, for the socket that this process has bound there, whoever in it holds it."""
    refused = False
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # it was that of the folder
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as found:
                    if found.family == socket.AF_UNIX and found.getsockname() == str(path):
                        refused = pass_descriptors(found, False) or refused
    return refused


class Closer:
    """Closes descriptors in a thread for each user, so that nobody waits for another's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[Hashable, deque[int]] = {}  # of those whose thread is at work; the one it closes comes first

    def close(self, user: Hashable, fds: Iterable[int]) -> None:
        """Ours no more. A process's end waits for none of them."""
        with self._lock:
            queue = self._queues.get(user)
            if queue is not None:
                queue.extend(fds)
                return
            self._queues[user] = deque(fds)
        threading.Thread(target=self._run, args=(user,), name="vattd-closer", daemon=True).start()

    def count_of(self, user: Hashable) -> int:
        """How many of the user's are not closed yet."""
        with self._lock:
            return len(self._queues.get(user, ()))

    def _run(self, user: Hashable) -> None:
        queue = self._queues[user]
        while True:
            with self._lock:
                if not queue:
                    del self._queues[user]
                    return
            os.close(queue[0])
            with self._lock:
                queue.popleft()
