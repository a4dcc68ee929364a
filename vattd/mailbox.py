"""What vattd has to tell one session, kept until its writer can send it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from vatt.v1 import vatt_pb2 as pb


class Mailbox:
    """Bounded by what it holds: the last guarantee, the last reclaim, and the last notice of each kind. So nobody ever
    waits for a session that does not read."""

    def __init__(self) -> None:
        self._letters: dict[object, pb.AttachResponse] = {}
        self._changed = asyncio.Event()
        self._closed = False

    def put(self, letter: pb.Notice | pb.Guarantee | pb.Reclaim) -> None:
        if isinstance(letter, pb.Notice):
            self._keep(("notice", letter.kind), pb.AttachResponse(notice=letter))
        elif isinstance(letter, pb.Guarantee):
            self._keep("guarantee", pb.AttachResponse(guarantee=letter))
        else:
            self._keep("reclaim", pb.AttachResponse(reclaim=letter))

    def close(self) -> None:
        """End the reader once it has read what is there."""
        self._closed = True
        self._changed.set()

    async def letters(self) -> AsyncIterator[pb.AttachResponse]:
        """For one reader: the session's stream."""
        while True:
            while self._letters:
                yield self._letters.pop(next(iter(self._letters)))
            if self._closed:
                return
            self._changed.clear()
            await self._changed.wait()

    def _keep(self, key: object, letter: pb.AttachResponse) -> None:
        self._letters.pop(key, None)  # the last word comes last
        self._letters[key] = letter
        self._changed.set()
