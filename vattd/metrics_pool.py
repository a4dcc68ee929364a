"""Metrics of the pool and its pages."""

from __future__ import annotations

from collections.abc import Iterator

from vattd import __version__
from vattd.metrics_reading import Reading
from vattd.metrics_text import Family, counter, gauge, one


def pool_families(reading: Reading) -> Iterator[Family]:
    yield _build(reading)
    yield from _pages(reading)
    yield from _limits(reading)
    yield one(gauge("vattd_draining", "1 while an operator has vattd drained, else 0."), reading.is_draining)


def _build(reading: Reading) -> Family:
    build = gauge("vattd_build_info", "Always 1: this vattd and its device.", "version", "backend", "uuid")
    build.add(1, __version__, reading.device.backend, reading.device.uuid)
    return build


def _pages(reading: Reading) -> Iterator[Family]:
    snapshot, page = reading.snapshot, reading.snapshot.page_size_bytes
    pages = gauge("vattd_pool_pages", "Pages by state; the sum is the pool's limit.", "state")
    size = gauge("vattd_pool_bytes", "Bytes by state; the sum is the pool's limit.", "state")
    for state, count in snapshot.pages_by_state.items():
        pages.add(count, state.value)
        size.add(count * page, state.value)
    yield one(gauge("vattd_page_size_bytes", "Size of a page."), page)
    yield pages
    yield size
    yield one(counter("vattd_pages_created_total", "Pages created."), snapshot.created_pages_total)
    yield one(counter("vattd_pages_scrubbed_total", "Pages scrubbed."), snapshot.scrubbed_pages_total)
    yield one(counter("vattd_pages_destroyed_total", "Pages destroyed."), snapshot.destroyed_pages_total)
    text = "Pages lent that had been lent before, without being created anew in between."
    yield one(counter("vattd_pages_recycled_total", text), snapshot.recycled_pages_total)


def _limits(reading: Reading) -> Iterator[Family]:
    snapshot, page = reading.snapshot, reading.snapshot.page_size_bytes
    text = "The most that the pool may take of the device."
    yield one(gauge("vattd_pool_max_bytes", text), snapshot.max_pages * page)
    yield one(gauge("vattd_pool_min_bytes", "What the pool keeps, even idle."), reading.pool_min_bytes)
    text = "Unused parts of hard mins, lent to nobody."
    yield one(gauge("vattd_pool_kept_free_bytes", text), reading.kept_free_pages * page)
    text = "The most bytes that were leased at one time since vattd started."
    yield one(gauge("vattd_pool_peak_leased_bytes", text), snapshot.peak_leased_pages * page)
    text = "The most bytes that were mapped at one time, by the sessions' word."
    yield one(gauge("vattd_pool_peak_mapped_bytes", text), snapshot.peak_mapped_pages * page)
