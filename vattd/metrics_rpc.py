"""Metrics of gRPC calls, under the names that ready-made dashboards know."""

from __future__ import annotations

from collections.abc import Iterator

from vattd.metrics_reading import Reading
from vattd.metrics_text import Family, counter, histogram

LABELS = ("grpc_type", "grpc_service", "grpc_method")


def rpc_families(reading: Reading) -> Iterator[Family]:
    text = "gRPC calls that ended, by method and code; one whose caller went away or ran out of time is Canceled."
    handled = counter("grpc_server_handled_total", text, *LABELS, "grpc_code")
    for (method, code), count in reading.rpc_calls.handled.items():
        handled.add(count, method.kind, method.service, method.name, code)
    text = "How long gRPC calls were in vattd; of a stream, as long as it was open."
    times = histogram("grpc_server_handling_seconds", text, *LABELS)
    for method, taken in reading.rpc_calls.times.items():
        times.add(taken, method.kind, method.service, method.name)
    yield from (handled, times)
