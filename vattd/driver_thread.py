"""The one thread that makes blocking driver calls, so that the event loop never does."""

from __future__ import annotations

import asyncio
import enum
import itertools
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from vattd.driver_calls import DriverCalls

T = TypeVar("T")

# A call goes ahead of at most this many that came before it and are one degree less urgent. So no stream of urgent
# calls, however dense, keeps the others waiting for ever.
GOES_AHEAD_OF = 16


class Urgency(enum.IntEnum):
    """Lower goes first. A call under way is never interrupted, so work comes in short slices."""

    LEASE = 0  # a lease waits for it
    EXPORT = 1
    BACKGROUND = 2


class DriverThread:
    """Runs calls one at a time: by urgency, and in order of arrival within it, but nobody waits for ever.

    `calls` counts them under their functions' names. It is the event loop's, as all that is counted.
    """

    def __init__(self) -> None:
        self.calls = DriverCalls()
        self._calls: queue.PriorityQueue[tuple[int, int, Callable[[], None]]] = queue.PriorityQueue()
        self._order = itertools.count()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="vattd-driver", daemon=True)
        self._thread.start()

    async def run(self, urgency: Urgency, call: Callable[..., T], *args: Any) -> T:
        """The result of `call(*args)`, or what it raised.

        The call is made even if the caller is cancelled; who needs its result all the same shields this.
        """
        loop, name = asyncio.get_running_loop(), call.__name__.lstrip("_")
        future: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None, took_s: float) -> None:
            self.calls.note(name, took_s, error)
            if future.cancelled():
                return
            if error is None:
                future.set_result(result)  # type: ignore[arg-type]  # T may be None itself
            else:
                future.set_exception(error)

        def work() -> None:
            began_s = time.perf_counter()
            try:
                result = call(*args)
            except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
                loop.call_soon_threadsafe(settle, None, error, time.perf_counter() - began_s)
            else:
                loop.call_soon_threadsafe(settle, result, None, time.perf_counter() - began_s)

        order = next(self._order)
        self._calls.put((order + urgency * GOES_AHEAD_OF, order, work))
        return await future

    def close(self) -> None:
        """Make every call that is queued, then end the thread."""
        order = next(self._order)
        self._calls.put((order + len(Urgency) * GOES_AHEAD_OF, order, self._stop))
        self._thread.join()

    def _stop(self) -> None:
        self._stopping = True

    def _run(self) -> None:
        while not self._stopping:
            self._calls.get()[2]()
