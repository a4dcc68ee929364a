"""Metrics of the device: its memory, whoever uses it, and the driver's calls."""

from __future__ import annotations

from collections.abc import Iterator

from vattd.metrics_reading import Reading
from vattd.metrics_text import Family, counter, gauge, histogram, one


def device_families(reading: Reading) -> Iterator[Family]:
    yield from _memory(reading)
    text = "1 while the device gives no more memory, else 0."
    yield one(gauge("vattd_device_short", text), reading.is_short)
    text = "1 once the device is lost: nothing is lent any more, and vattd ends."
    yield one(gauge("vattd_device_lost", text), reading.is_lost)
    yield from _driver_calls(reading)


def _memory(reading: Reading) -> Iterator[Family]:
    total = gauge("vattd_device_total_bytes", "The device's memory; on the host, what this vattd's cgroup may have.")
    free = gauge(
        "vattd_device_free_bytes", "Device memory that could be taken now; on the host, less what is left to others."
    )
    pages = gauge("vattd_device_pages_bytes", "Device memory behind this vattd's pages, as the device counts it.")
    other = gauge(
        "vattd_device_other_bytes",
        "Device memory that all the rest takes: other programs, vattd's own context, what engines keep of pages that "
        "vattd destroyed, and on the host what is left to others.",
    )
    memory = reading.memory
    if memory is not None:
        total.add(memory.total_bytes)
        free.add(memory.free_bytes)
        pages.add(memory.pages_bytes)
        other.add(max(0, memory.total_bytes - memory.free_bytes - memory.pages_bytes))
    yield from (total, free, pages, other)
    context = gauge(
        "vattd_context_bytes",
        "What the CUDA context for scrubbing took of the device when it was made; 0 while there is none, missing where "
        "that could not be told.",
    )
    if reading.context_bytes is not None:
        context.add(reading.context_bytes)
    yield context


def _driver_calls(reading: Reading) -> Iterator[Family]:
    text = "How long the driver thread was at a call: one for all pages of a run, failed ones too."
    times = histogram("vattd_driver_call_seconds", text, "call")
    for call, taken in reading.driver_calls.times.items():
        times.add(taken, call)
    text = "Calls that failed, by the driver's own code, or by vattd's reason where the driver has none."
    errors = counter("vattd_driver_errors_total", text, "call", "code")
    for (call, code), count in reading.driver_calls.errors.items():
        errors.add(count, call, code)
    yield from (times, errors)
