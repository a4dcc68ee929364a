"""Metrics of each tenant. One that is forgotten, with its last session, page and guarantee, has none any more."""

from __future__ import annotations

from collections.abc import Iterator

from vattd.metrics_reading import Reading
from vattd.metrics_text import Family, counter, gauge, histogram
from vattd.pressure import PromiseState


def tenant_families(reading: Reading) -> Iterator[Family]:
    yield from _memory(reading)
    yield from _guarantees(reading)
    yield from _leases(reading)
    yield from _baselines(reading)


def _memory(reading: Reading) -> Iterator[Family]:
    page = reading.snapshot.page_size_bytes
    sessions = gauge("vattd_sessions", "Attached processes, by tenant.", "tenant")
    leased = gauge("vattd_tenant_leased_bytes", "Bytes leased, by tenant.", "tenant")
    mapped = gauge("vattd_tenant_mapped_bytes", "Leased bytes that are mapped, by the sessions' word.", "tenant")
    idle = gauge("vattd_tenant_idle_bytes", "Leased bytes that are mapped nowhere: the engines' page caches.", "tenant")
    tokens = gauge("vattd_tenant_token_bytes", "Mapped bytes that tokens fill; a shared prefix counts once.", "tenant")
    ratio = gauge(
        "vattd_tenant_utilization_ratio", "Token bytes to mapped bytes; missing while nothing is mapped.", "tenant"
    )
    for tenant in reading.snapshot.tenants:
        name, usage = tenant.name, tenant.usage
        mapped_bytes = usage.mapped_pages * page
        sessions.add(tenant.session_count, name)
        leased.add(tenant.leased_pages * page, name)
        mapped.add(mapped_bytes, name)
        # Before a new vattd has heard from a session again, it is said to map nothing.
        idle.add(max(0, tenant.leased_pages * page - mapped_bytes), name)
        tokens.add(usage.token_bytes, name)
        if mapped_bytes:
            ratio.add(usage.token_bytes / mapped_bytes, name)
    yield from (sessions, leased, mapped, idle, tokens, ratio)


def _guarantees(reading: Reading) -> Iterator[Family]:
    page = reading.snapshot.page_size_bytes
    least = gauge("vattd_tenant_min_bytes", "Bytes promised, by tenant.", "tenant")
    most = gauge("vattd_tenant_max_bytes", "The most bytes a tenant may lease; only tenants with a max.", "tenant")
    weight = gauge("vattd_tenant_weight", "The tenant's share of what is left beyond all mins.", "tenant")
    missing = gauge(
        "vattd_tenant_missing_bytes", "Bytes asked for within the min, or kept for a hard one, and not there.", "tenant"
    )
    broken = gauge(
        "vattd_tenant_promise_broken", "1 while those asked for missing bytes are overdue, else 0.", "tenant"
    )
    for tenant in reading.tenants:
        name, guarantee, promise = tenant.view.name, tenant.view.guarantee, tenant.promise
        least.add(guarantee.min_pages * page, name)
        if guarantee.max_pages is not None:
            most.add(guarantee.max_pages * page, name)
        weight.add(guarantee.weight, name)
        missing.add(promise.missing_pages * page, name)
        broken.add(promise.state is PromiseState.BROKEN, name)
    yield from (least, most, weight, missing, broken)


def _leases(reading: Reading) -> Iterator[Family]:
    page = reading.snapshot.page_size_bytes
    granted = counter("vattd_tenant_granted_bytes_total", "Bytes that leases were granted, by tenant.", "tenant")
    refusals = counter(
        "vattd_lease_refusals_total", "Leases refused, by tenant and reason, as in vatt.errors.", "tenant", "reason"
    )
    waits = histogram(
        "vattd_lease_wait_seconds",
        "How long leases for new requests (ADMIT) that were granted had waited, those granted at once too.",
        "tenant",
    )
    leases = gauge("vattd_tenant_waiting_leases", "Leases that wait, by tenant.", "tenant")
    waiting = gauge("vattd_tenant_waiting_bytes", "Bytes asked for by leases that wait.", "tenant")
    longest = gauge(
        "vattd_tenant_longest_wait_seconds",
        "How long the first of the leases that wait has waited; 0 where none does.",
        "tenant",
    )
    for tenant in reading.tenants:
        name, tally = tenant.view.name, tenant.view.tally
        granted.add(tally.granted_pages * page, name)
        for reason, count in tally.refusals.items():
            refusals.add(count, name, reason)
        waits.add(tally.admit_wait, name)
        leases.add(tenant.waiting_leases, name)
        waiting.add(tenant.waiting_pages * page, name)
        longest.add(tenant.longest_wait_s, name)
    yield from (granted, refusals, waits, leases, waiting, longest)


def _baselines(reading: Reading) -> Iterator[Family]:
    page = reading.snapshot.page_size_bytes
    baseline = gauge(
        "vattd_tenant_baseline_bytes",
        "Bytes that another way of holding the same tokens would take: look at one, never add them up. "
        "static_reservation: every slot at its full context from the start; paged16, paged256: PagedAttention in "
        "blocks of 16 or 256 tokens, a shared prefix once.",
        "tenant",
        "baseline",
    )
    saved = gauge(
        "vattd_tenant_saved_bytes",
        "A baseline less the mapped bytes; below 0 where it would take less.",
        *baseline.labels,
    )
    for tenant in reading.snapshot.tenants:
        usage = tenant.usage
        for name, size_bytes in (
            ("static_reservation", usage.static_reservation_bytes),
            ("paged16", usage.paged16_bytes),
            ("paged256", usage.paged256_bytes),
        ):
            baseline.add(size_bytes, tenant.name, name)
            saved.add(size_bytes - usage.mapped_pages * page, tenant.name, name)
    yield from (baseline, saved)
