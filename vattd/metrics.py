"""What Prometheus scrapes: a view of one snapshot, made when it asks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from vatt.errors import InvalidRequest
from vattd import __version__
from vattd.config import Address
from vattd.pool import Pool
from vattd.snapshot import Snapshot
from vattention.vmm.driver import Device

SNAPSHOT_WITHIN_S = 5.0


class PoolCollector(Collector):
    """Runs on the HTTP server's threads; the snapshot is made on the event loop, which alone may read the ledger."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: Pool, device: Device) -> None:
        self._loop, self._pool, self._device = loop, pool, device

    def describe(self) -> list[Metric]:
        """Nothing: without it the registry would scrape once at start, before the loop serves."""
        return []

    def collect(self) -> Iterator[Metric]:
        snapshot = asyncio.run_coroutine_threadsafe(self._snapshot(), self._loop).result(SNAPSHOT_WITHIN_S)
        page = snapshot.page_size_bytes
        yield InfoMetricFamily(
            "vattd_build",
            "This vattd and its device.",
            {"version": __version__, "backend": self._device.backend, "uuid": self._device.uuid},
        )
        yield GaugeMetricFamily("vattd_page_size_bytes", "Size of a page.", value=page)
        pages = GaugeMetricFamily("vattd_pool_pages", "Pages by state; the sum is the pool's limit.", labels=["state"])
        for state, count in snapshot.pages_by_state.items():
            pages.add_metric([state.value], count)
        yield pages
        leased = GaugeMetricFamily("vattd_tenant_leased_bytes", "Bytes leased, by tenant.", labels=["tenant"])
        sessions = GaugeMetricFamily("vattd_sessions", "Attached processes, by tenant.", labels=["tenant"])
        for tenant in snapshot.tenants:
            leased.add_metric([tenant.name], tenant.leased_pages * page)
            sessions.add_metric([tenant.name], tenant.session_count)
        yield from (leased, sessions, *_usage_metrics(snapshot))
        yield CounterMetricFamily("vattd_pages_created", "Pages created.", value=snapshot.created_pages_total)
        yield CounterMetricFamily("vattd_pages_scrubbed", "Pages scrubbed.", value=snapshot.scrubbed_pages_total)
        yield CounterMetricFamily("vattd_pages_destroyed", "Pages destroyed.", value=snapshot.destroyed_pages_total)

    async def _snapshot(self) -> Snapshot:
        return self._pool.ledger.snapshot()


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


class MetricsServer:
    """/metrics on one address."""

    def __init__(self, address: Address, collector: PoolCollector) -> None:
        registry = CollectorRegistry()
        registry.register(collector)
        try:
            self._server, self._thread = start_http_server(address.port, address.host, registry)
        except OSError as error:
            raise InvalidRequest(
                f"cannot serve metrics on {address} ({error}): choose another --metrics-address, or `off`"
            ) from error
        self.address = Address(address.host, self._server.server_port)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
