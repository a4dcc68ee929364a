"""Metrics of vattd's own process, as prometheus_client reads them from /proc."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import ProcessCollector

from vattd.metrics_text import Family, Kind, one

_COLLECTOR = ProcessCollector(registry=None)


def process_families() -> Iterator[Family]:
    for metric in _COLLECTOR.collect():
        [sample] = metric.samples
        yield one(Family(sample.name, Kind(metric.type), metric.documentation), sample.value)
