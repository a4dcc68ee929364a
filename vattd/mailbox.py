"""What vattd has to tell one session, kept until its writer can send it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from vatt.v1 import vatt_pb2 as pb


class Mailbox:
    """Bounded by what it holds: the last notice of each kind. So nobody ever waits for a session that does not read."""

    def __init__(self) -> None:
        self._notices: dict[int, pb.Notice] = {}
        self._changed = asyncio.Event()
        self._closed = False

    def put(self, notice: pb.Notice) -> None:
        self._notices[notice.kind] = notice
        self._changed.set()

    def close(self) -> None:
        """End the reader once it has read what is there."""
        self._closed = True
        self._changed.set()

    async def notices(self) -> AsyncIterator[pb.Notice]:
        """For one reader: the session's stream."""
        while True:
            while self._notices:
                yield self._notices.pop(next(iter(self._notices)))
            if self._closed:
                return
            self._changed.clear()
            await self._changed.wait()
