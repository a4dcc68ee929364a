"""/status.json and /healthz for the HTTP server's threads: the event loop reads at one instant, they render."""

from __future__ import annotations

import asyncio
import threading
import time

from vattd.loop_call import Call, ask
from vattd.site import PLAIN, Content, Unanswered
from vattd.status import DaemonState, Status
from vattd.status_json import Reading, render

# However many look, the event loop reads for them once in so long.
FRESH_FOR_S = 1.0


class StatusFeed:
    """Runs on the HTTP server's threads.

    One of them has the loop read; those that come meanwhile wait for it, and get the same. A failure is kept as long,
    so that viewers of a vattd that hangs do not queue behind each other.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, status: Status, read: Call[Reading]) -> None:
        self._loop, self._status, self._read = loop, status, read
        self._one_reads = threading.Lock()
        self._fresh_until_s = float("-inf")
        self._last: Content | Unanswered = Unanswered("vattd has read nothing yet")

    def status_json(self) -> Content:
        """Raises Unanswered."""
        with self._one_reads:
            if time.monotonic() >= self._fresh_until_s:
                self._last = self._new()
                self._fresh_until_s = time.monotonic() + FRESH_FOR_S
            last = self._last
        if isinstance(last, Unanswered):
            raise Unanswered(*last.args)  # each thread its own, since it gets a traceback
        return last

    def health(self) -> Content:
        """Raises Unanswered, with the reason, unless vattd serves."""
        state = ask(self._loop, self._state)
        if state is not DaemonState.SERVING:
            raise Unanswered(state.value)
        return Content.of(b"serving\n", PLAIN)

    def _new(self) -> Content | Unanswered:
        try:
            return Content.of(render(ask(self._loop, self._read)), "application/json")
        except Unanswered as error:
            return error

    async def _state(self) -> DaemonState:
        return self._status.state
