"""What Prometheus scrapes: a view of one instant, made when it asks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from vattd.metrics_device import device_families
from vattd.metrics_pool import pool_families
from vattd.metrics_process import process_families
from vattd.metrics_reading import Reading, Readings
from vattd.metrics_rpc import rpc_families
from vattd.metrics_sessions import session_families
from vattd.metrics_tenants import tenant_families
from vattd.metrics_text import Family, text_of

READING_WITHIN_S = 5.0


class Metrics:
    """Runs on the HTTP server's threads. Figures are read on the event loop, which alone may read them, all at once;
    the text is made of them here, beside it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, readings: Readings) -> None:
        self._loop, self._readings = loop, readings

    def text(self) -> str:
        reading = asyncio.run_coroutine_threadsafe(self._readings.read(), self._loop).result(READING_WITHIN_S)
        return text_of(families_of(reading)) + text_of(process_families())


def families_of(reading: Reading) -> Iterator[Family]:
    yield from pool_families(reading)
    yield from device_families(reading)
    yield from tenant_families(reading)
    yield from session_families(reading)
    yield from rpc_families(reading)
