"""Metrics of sessions, of leases over all tenants, and of what happens."""

from __future__ import annotations

from collections.abc import Iterator

from vattd.metrics_reading import Reading
from vattd.metrics_text import Family, counter, gauge, histogram, one


def session_families(reading: Reading) -> Iterator[Family]:
    text = "Sessions that keep their pages and get no new ones: their stream broke, and their process lives."
    yield one(gauge("vattd_sessions_fenced", text), reading.fenced_sessions)
    ends = counter("vattd_session_ends_total", "Sessions that ended, by cause.", "cause")
    for cause, count in reading.ends.items():
        ends.add(count, cause.value)
    yield ends
    yield from _leases(reading)
    yield from _reclaims(reading)
    yield from _recovery(reading)
    events = counter("vattd_events_total", "What happened, as `vattctl events` tells it, by kind.", "kind")
    for kind, count in reading.events.items():
        events.add(count, kind.value)
    yield events


def _leases(reading: Reading) -> Iterator[Family]:
    granted = counter("vattd_leases_total", "Leases granted, by purpose.", "purpose")
    pages = counter("vattd_lease_pages_total", "Pages that leases were granted, by purpose.", "purpose")
    text = "From a lease's request to the answer that grants it, inside vattd."
    duration = histogram("vattd_lease_duration_seconds", text, "purpose")
    for purpose, tally in reading.leases.items():
        granted.add(sum(tally.duration.counts), purpose.value)
        pages.add(tally.granted_pages, purpose.value)
        duration.add(tally.duration, purpose.value)
    yield from (granted, pages, duration)


def _reclaims(reading: Reading) -> Iterator[Family]:
    counts = reading.reclaims
    yield one(counter("vattd_reclaims_asked_total", "Times that sessions were asked for pages."), counts.asked)
    yield one(counter("vattd_reclaim_pages_asked_total", "Pages that sessions were asked for."), counts.asked_pages)
    yield one(counter("vattd_reclaims_answered_total", "Asks answered, or met, in time."), counts.answered)
    yield one(counter("vattd_reclaims_ignored_total", "Asks whose time went by."), counts.ignored)
    yield one(counter("vattd_sessions_killed_total", "Sessions killed for a broken promise."), counts.killed)


def _recovery(reading: Reading) -> Iterator[Family]:
    recovery, page = reading.recovery, reading.snapshot.page_size_bytes
    text = "Sessions of the vattd before that have not re-attached."
    yield one(gauge("vattd_sessions_awaited", text), recovery.awaited_sessions)
    text = "Bytes that sessions of the vattd before hold and have not claimed: kept for them."
    yield one(gauge("vattd_unclaimed_bytes", text), recovery.unclaimed_pages * page)
    text = "Sessions of the vattd before that re-attached."
    yield one(counter("vattd_sessions_recovered_total", text), recovery.recovered_total)
    text = "Sessions of the vattd before that ended instead."
    yield one(counter("vattd_sessions_lost_total", text), recovery.lost_total)
    text = "Pages that two sessions claimed, after vattd was started anew."
    yield one(counter("vattd_disputed_pages_total", text), recovery.disputed_total)
