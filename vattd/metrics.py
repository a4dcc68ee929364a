"""What Prometheus scrapes: a view of one snapshot, made when it asks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from vattd import __version__
from vattd.pool import Pool
from vattd.pressure import PromiseState
from vattd.reclaim import ReclaimCounts
from vattd.recovery import Recovery
from vattd.snapshot import Snapshot
from vattention.vmm.driver import Device

SNAPSHOT_WITHIN_S = 5.0


class PoolCollector(Collector):
    """Runs on the HTTP server's threads; all figures are read at once on the event loop, which alone may read them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: Pool, device: Device, recovery: Recovery) -> None:
        self._loop, self._pool, self._device, self._recovery = loop, pool, device, recovery

    def describe(self) -> list[Metric]:
        """Nothing: without it the registry would scrape once at start, before the loop serves."""
        return []

    def collect(self) -> list[Metric]:
        return asyncio.run_coroutine_threadsafe(self._read(), self._loop).result(SNAPSHOT_WITHIN_S)

    async def _read(self) -> list[Metric]:
        snapshot, now_s = self._pool.ledger.snapshot(), self._loop.time()
        build = {"version": __version__, "backend": self._device.backend, "uuid": self._device.uuid}
        return [
            InfoMetricFamily("vattd_build", "This vattd and its device.", build),
            *_pool_metrics(snapshot, self._pool),
            *_tenant_metrics(snapshot, self._pool, now_s),
            *_usage_metrics(snapshot),
            *_reclaim_metrics(self._pool.pressure.reclaims.counts),
            *_recovery_metrics(snapshot, self._recovery),
        ]


def _pool_metrics(snapshot: Snapshot, pool: Pool) -> Iterator[Metric]:
    page = snapshot.page_size_bytes
    yield GaugeMetricFamily("vattd_page_size_bytes", "Size of a page.", value=page)
    pages = GaugeMetricFamily("vattd_pool_pages", "Pages by state; the sum is the pool's limit.", labels=["state"])
    for state, count in snapshot.pages_by_state.items():
        pages.add_metric([state.value], count)
    yield pages
    kept_bytes = pool.kept_free_pages * page
    yield GaugeMetricFamily(
        "vattd_pool_kept_free_bytes", "Unused parts of hard mins, lent to nobody.", value=kept_bytes
    )
    is_short = pool.shortage is not None
    yield GaugeMetricFamily("vattd_device_short", "1 while the device gives no more memory, else 0.", value=is_short)
    text = "1 once the device is lost: nothing is lent any more, and vattd ends."
    yield GaugeMetricFamily("vattd_device_lost", text, value=pool.device_lost)
    yield GaugeMetricFamily("vattd_draining", "1 while an operator has vattd drained, else 0.", value=pool.draining)
    if pool.context_bytes is not None:
        yield GaugeMetricFamily(
            "vattd_context_bytes",
            "Device memory that the CUDA context for scrubbing took when it was made; 0 while there is none, missing "
            "where that could not be told.",
            value=pool.context_bytes,
        )
    yield CounterMetricFamily("vattd_pages_created", "Pages created.", value=snapshot.created_pages_total)
    yield CounterMetricFamily("vattd_pages_scrubbed", "Pages scrubbed.", value=snapshot.scrubbed_pages_total)
    yield CounterMetricFamily("vattd_pages_destroyed", "Pages destroyed.", value=snapshot.destroyed_pages_total)


def _tenant_metrics(snapshot: Snapshot, pool: Pool, now_s: float) -> Iterator[Metric]:
    def gauge(name: str, text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"vattd_{name}", text, labels=["tenant"])

    page = snapshot.page_size_bytes
    leased = gauge("tenant_leased_bytes", "Bytes leased, by tenant.")
    sessions = gauge("sessions", "Attached processes, by tenant.")
    minimum = gauge("tenant_min_bytes", "Bytes promised, by tenant.")
    maximum = gauge("tenant_max_bytes", "The most bytes a tenant may lease; only tenants with a max.")
    missing = gauge("tenant_missing_bytes", "Bytes asked for within the min, or kept for a hard one, and not there.")
    broken = gauge("tenant_promise_broken", "1 while those asked for missing bytes are overdue, else 0.")
    waiting = gauge("tenant_waiting_bytes", "Bytes asked for by leases that wait.")
    longest = gauge("tenant_longest_wait_seconds", "How long the first of the leases that wait has waited.")
    labels = ["tenant"]
    waits = CounterMetricFamily("vattd_tenant_waits", "Leases that waited and were granted.", labels=labels)
    waited = CounterMetricFamily("vattd_tenant_wait_seconds", "How long those waited in all.", labels=labels)
    for view in snapshot.tenants:
        tenant = pool.ledger.tenant(view.name)
        if tenant is None:
            continue
        name, guarantee, promise = [view.name], view.guarantee, pool.pressure.promise_of(tenant, now_s)
        leased.add_metric(name, view.leased_pages * page)
        sessions.add_metric(name, view.session_count)
        minimum.add_metric(name, guarantee.min_pages * page)
        if guarantee.max_pages is not None:
            maximum.add_metric(name, guarantee.max_pages * page)
        missing.add_metric(name, promise.missing_pages * page)
        broken.add_metric(name, promise.state is PromiseState.BROKEN)
        waiting.add_metric(name, pool.policy.wishes.queued_pages(tenant) * page)
        longest.add_metric(name, pool.policy.longest_wait_s(tenant, now_s))
        waits.add_metric(name, view.tally.waited)
        waited.add_metric(name, view.tally.waited_s)
    yield from (leased, sessions, minimum, maximum, missing, broken, waiting, longest, waits, waited)


def _reclaim_metrics(counts: ReclaimCounts) -> Iterator[Metric]:
    yield CounterMetricFamily("vattd_reclaims_asked", "Times that sessions were asked for pages.", value=counts.asked)
    yield CounterMetricFamily("vattd_reclaim_pages_asked", "Pages that they were asked for.", value=counts.asked_pages)
    yield CounterMetricFamily("vattd_reclaims_answered", "Asks answered, or met, in time.", value=counts.answered)
    yield CounterMetricFamily("vattd_reclaims_ignored", "Asks whose time went by.", value=counts.ignored)
    yield CounterMetricFamily("vattd_sessions_killed", "Sessions killed for a broken promise.", value=counts.killed)


def _recovery_metrics(snapshot: Snapshot, recovery: Recovery) -> Iterator[Metric]:
    unclaimed = sum(view.leased_pages for view in snapshot.sessions if recovery.awaits(view.session_id))
    text = "Sessions of the vattd before that have not re-attached."
    yield GaugeMetricFamily("vattd_sessions_awaited", text, value=recovery.awaited_count)
    text = "Bytes that those hold, kept for them."
    yield GaugeMetricFamily("vattd_unclaimed_bytes", text, value=unclaimed * snapshot.page_size_bytes)
    text = "Sessions of the vattd before that re-attached."
    yield CounterMetricFamily("vattd_sessions_recovered", text, value=recovery.recovered_total)
    text = "Sessions of the vattd before that ended instead."
    yield CounterMetricFamily("vattd_sessions_lost", text, value=recovery.lost_total)


def _usage_metrics(snapshot: Snapshot) -> Iterator[Metric]:
    """What the sessions report. What paging saves is a baseline less the mapped bytes: queries subtract."""
    mapped = GaugeMetricFamily(
        "vattd_tenant_mapped_bytes", "Physical bytes mapped, by the sessions' word.", labels=["tenant"]
    )
    tokens = GaugeMetricFamily(
        "vattd_tenant_token_bytes",
        "Bytes of the mapped ones that tokens fill; a shared prefix once.",
        labels=["tenant"],
    )
    baselines = GaugeMetricFamily(
        "vattd_tenant_baseline_bytes",
        "Bytes that another way of holding the same tokens would take: compare one with the mapped bytes, never add "
        "them up. static_reservation: every slot at its full context from the start; paged16, paged256: PagedAttention "
        "in blocks of 16 or 256 tokens, a shared prefix once.",
        labels=["tenant", "baseline"],
    )
    for tenant in snapshot.tenants:
        usage = tenant.usage
        mapped.add_metric([tenant.name], usage.mapped_pages * snapshot.page_size_bytes)
        tokens.add_metric([tenant.name], usage.token_bytes)
        baselines.add_metric([tenant.name, "static_reservation"], usage.static_reservation_bytes)
        baselines.add_metric([tenant.name, "paged16"], usage.paged16_bytes)
        baselines.add_metric([tenant.name, "paged256"], usage.paged256_bytes)
    yield from (mapped, tokens, baselines)
