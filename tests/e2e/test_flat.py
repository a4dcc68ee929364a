"""Eight engines for as long as one likes: the daemon grows in nothing, and answers as fast as at first."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.e2e.conftest import PAGE, Rig
from tests.e2e.test_chaos import Engine, settled, until
from tests.raw_engine import RawEngine

POOL_PAGES = 512
ENGINES = 8
SAMPLES = 120
PROBE_EVERY_S = 0.01
# What an hour may add by the slope of all samples, and how much slower the last third may be than the first.
MOST_KIB_AN_HOUR = 4096
MOST_FDS_AN_HOUR = 4
MOST_MORE = 4  # descriptors, or threads, between these thirds
SLOWER = 2.0
# A slope means something after a while.
SLOPE_FROM_MINUTES = 5.0


@dataclass(frozen=True)
class Sample:
    time_s: float
    rss_anon_kib: int
    fds: int
    threads: int
    p99_ms: float


def look(pid: int, begin_s: float, latencies_s: Sequence[float]) -> Sample:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Sample(
        time_s=time.monotonic() - begin_s,
        rss_anon_kib=int(fields["RssAnon"].split()[0]),
        fds=len(os.listdir(f"/proc/{pid}/fd")),
        threads=int(fields["Threads"]),
        p99_ms=float(np.percentile(latencies_s, 99)) * 1e3,
    )


def slope_an_hour(samples: Sequence[Sample], what: Callable[[Sample], float]) -> float:
    times = [sample.time_s for sample in samples]
    return float(np.polyfit(times, [what(sample) for sample in samples], 1)[0]) * 3600


def probe(engine: RawEngine, until_s: float) -> list[float]:
    """Lease a page and return it, again and again; how long the leases took."""
    latencies_s = []
    while time.monotonic() < until_s:
        begin_s = time.monotonic()
        with suppress(grpc.RpcError):  # exhausted, as often as not
            engine.give_back(engine.lease(1))
        latencies_s.append(time.monotonic() - begin_s)
        time.sleep(PROBE_EVERY_S)
    return latencies_s


def test_the_daemon_stays_as_it_is(rig: Callable[..., Rig], request: pytest.FixtureRequest) -> None:
    minutes = request.config.getoption("--flat-minutes")
    there = rig(POOL_PAGES)
    engines = [Engine(there, f"tenant-{number % 3}", number) for number in range(ENGINES)]
    try:
        until(lambda: all(engine.steps for engine in engines), 60, "not all engines work")
        with RawEngine(there.vattd.sockets, "probe") as prober:
            samples, begin_s = [], time.monotonic()
            for number in range(1, SAMPLES + 1):
                latencies_s = probe(prober, begin_s + number * minutes * 60 / SAMPLES)
                if latencies_s:
                    samples.append(look(there.vattd.pid, begin_s, latencies_s))
            prober.detach()
        for engine in engines:
            engine.process.terminate()
            assert engine.wait() == 0, engine.last
        until(lambda: settled(there.vattd.status()), 60, "pages are lost")
    finally:
        for engine in engines:
            if engine.process.poll() is None:
                engine.kill()
    tell(request.node.callspec.params["rig"], minutes, samples, sum(engine.steps for engine in engines))
    third = len(samples) // 3
    first, last = samples[:third], samples[-third:]
    # Medians: a sample that falls into a delivery counts the descriptors that are on their way.
    for what in ("fds", "threads"):
        before, after = (np.median([getattr(sample, what) for sample in part]) for part in (first, last))
        assert after <= before + MOST_MORE, what
    if minutes >= SLOPE_FROM_MINUTES:
        warm = samples[len(samples) // 10 :]
        assert slope_an_hour(warm, lambda sample: sample.rss_anon_kib) < MOST_KIB_AN_HOUR
        assert slope_an_hour(warm, lambda sample: sample.fds) < MOST_FDS_AN_HOUR
        assert np.median([s.p99_ms for s in last]) < SLOWER * np.median([s.p99_ms for s in first])


def tell(backend: str, minutes: float, samples: Sequence[Sample], steps: int) -> None:
    warm = samples[len(samples) // 10 :]
    third = len(samples) // 3
    medians = [np.median([sample.p99_ms for sample in part]) for part in (samples[:third], samples[-third:])]
    print(
        f"{backend}: {minutes:g} minutes, {ENGINES} engines, {steps} steps over pages of {PAGE} bytes; RssAnon "
        f"{samples[0].rss_anon_kib} -> {samples[-1].rss_anon_kib} KiB, slope "
        f"{slope_an_hour(warm, lambda s: s.rss_anon_kib):.0f} KiB an hour; descriptors "
        f"{samples[0].fds} -> {samples[-1].fds}, slope {slope_an_hour(warm, lambda s: s.fds):.1f}; threads "
        f"{samples[0].threads} -> {samples[-1].threads}; p99 of lease and return {medians[0]:.1f} -> "
        f"{medians[1]:.1f} ms"
    )
