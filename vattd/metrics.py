"""What Prometheus scrapes: a view of one instant, made when it asks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

from vattd.loop_call import ask
from vattd.metrics_device import device_families
from vattd.metrics_pool import pool_families
from vattd.metrics_process import process_families
from vattd.metrics_reading import Reading, Readings
from vattd.metrics_rpc import rpc_families
from vattd.metrics_sessions import session_families
from vattd.metrics_tenants import tenant_families
from vattd.metrics_text import Family, text_of
from vattd.site import Unanswered

# While text is made, the event loop hardly gets the interpreter: it is the loop's for so many times as long after each.
OTHERS_SHARE = 4.0
MAX_REST_S = 1.0


class Metrics:
    """Runs on the HTTP server's threads. Figures are read on the event loop, which alone may read them, all at once;
    the text is made of them here, beside it.

    Whoever reaches the address may ask as often as it likes: one thread makes the text, and those that come before it
    begins get the same. So every text is of an instant after it was asked for, and leases go on meanwhile.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, readings: Readings) -> None:
        self._loop, self._readings = loop, readings
        self._one_makes = threading.Lock()
        self._began_s = self._rest_until_s = float("-inf")
        self._last: str | Unanswered = ""

    def text(self) -> str:
        """Raises Unanswered."""
        came_s = time.monotonic()
        with self._one_makes:
            if self._began_s < came_s:
                time.sleep(max(0.0, self._rest_until_s - time.monotonic()))
                began_s, began_cpu_s = time.monotonic(), time.thread_time()
                self._last = self._made()
                self._began_s = began_s
                rest_s = min(MAX_REST_S, OTHERS_SHARE * (time.thread_time() - began_cpu_s))
                self._rest_until_s = time.monotonic() + rest_s
            last = self._last
        if isinstance(last, Unanswered):
            raise Unanswered(*last.args)  # each thread its own, since it gets a traceback
        return last

    def _made(self) -> str | Unanswered:
        try:
            reading = ask(self._loop, self._readings.read)
        except Unanswered as error:
            return error
        return text_of(families_of(reading)) + text_of(process_families())


def families_of(reading: Reading) -> Iterator[Family]:
    yield from pool_families(reading)
    yield from device_families(reading)
    yield from tenant_families(reading)
    yield from session_families(reading)
    yield from rpc_families(reading)
