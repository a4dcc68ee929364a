"""Closing what other processes may have filled.

A descriptor that lies unread in a socket, or that was received, is closed with the last of its holders, and that may
take as long as its maker likes: a TCP socket that lingers, a file of a file system that some process serves. Linux 6.16
lets us refuse descriptors altogether (SO_PASSRIGHTS); before, only a thread that nobody waits for can close them.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Hashable, Iterable


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
