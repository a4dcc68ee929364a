"""What one watcher of events has still to read."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from vattd.happenings import Happening, Happenings

# A watcher that reads more slowly than this fills loses the oldest.
MAX_UNREAD = 4096


class EventFeed:
    """From what is kept of the past to the present, in order, for one reader. Belongs to the event loop.

    Bounded, so that nobody waits for a watcher that does not read: `missed` beside an event is how many were lost
    before it.
    """

    def __init__(self, happenings: Happenings, after: int, min_lease_pages: int) -> None:
        self._min_lease_pages = min_lease_pages
        self._unread = deque(what for what in happenings.since(after) if self._wants(what))
        self._missed = 0
        self._changed = asyncio.Event()
        self._closed = False
        self._stop_listening = happenings.listen(self._take)

    def close(self) -> None:
        """End the reader once it has read what is there."""
        self._stop_listening()
        self._closed = True
        self._changed.set()

    async def read(self, *, follow: bool) -> AsyncIterator[tuple[Happening, int]]:
        """Each happening, and how many were lost before it. Without `follow`, to the end of what is there."""
        while True:
            while self._unread:
                missed, self._missed = self._missed, 0
                yield self._unread.popleft(), missed
            if self._closed or not follow:
                return
            self._changed.clear()
            await self._changed.wait()

    def _take(self, what: Happening) -> None:
        if not self._wants(what):
            return
        if len(self._unread) >= MAX_UNREAD:
            self._unread.popleft()
            self._missed += 1
        self._unread.append(what)
        self._changed.set()

    def _wants(self, what: Happening) -> bool:
        return not what.kind.is_lease or what.page_count >= self._min_lease_pages
