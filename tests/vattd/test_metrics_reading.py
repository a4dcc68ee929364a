"""A reading is of one instant, costs the driver little, and is there when the driver is not."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.vattd.fake_driver import FakeDriver
from tests.vattd.test_pool import MAX_PAGES, Bench, at_work, fail_on
from vatt.errors import DeviceLost, DriverError, OutOfMemory
from vatt.usage import Usage
from vattd import metrics_reading
from vattd.guarantee import Access, Guarantee
from vattd.happenings import EndCause, Kind
from vattd.metrics import Metrics
from vattd.metrics_reading import Reading, Readings
from vattd.recovery import Recovery
from vattd.rpc_calls import RpcCalls
from vattd.sessions import Sessions
from vattd.wish import Purpose
from vattention.vmm.driver import DeviceMemory


def readings_of(bench: Bench, fenced: tuple[str, ...] = (), awaited: tuple[str, ...] = ()) -> Readings:
    recovery: Any = SimpleNamespace(
        awaits=lambda session_id: session_id in awaited, awaited_count=len(awaited), recovered_total=0, lost_total=0
    )
    sessions: Any = [SimpleNamespace(session_id=name, fenced=True) for name in fenced]
    return Readings(
        bench.driver.device,
        bench.pool,
        cast(Sessions, sessions),
        cast(Recovery, recovery),
        bench.thread.calls,
        RpcCalls(),
    )


async def samples_of(readings: Readings) -> dict[str, str]:
    """As they are scraped, by name and labels."""
    metrics = Metrics(asyncio.get_running_loop(), readings)
    text = await asyncio.to_thread(metrics.text)
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


class SlowMemory(FakeDriver):
    """Counts how often it is asked for its memory, and answers when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.error: DriverError | None = None

    def memory(self) -> DeviceMemory:
        self.asked += 1
        self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return super().memory()


def test_the_device_is_looked_at_once_however_many_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_reading, "MEMORY_MAX_AGE_S", 3600.0)
    driver = SlowMemory()

    async def story(bench: Bench) -> None:
        readings = readings_of(bench)
        driver.may_answer.clear()
        both = asyncio.gather(readings.read(), readings.read())
        await bench.until(lambda: driver.asked == 1)
        driver.may_answer.set()
        for reading in [*(await both), await readings.read()]:
            assert reading.memory == driver_memory
        assert driver.asked == 1

    driver_memory = FakeDriver().memory()
    at_work(driver, story)


def test_a_look_that_is_too_old_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_reading, "MEMORY_MAX_AGE_S", 0.0)
    driver = SlowMemory()

    async def story(bench: Bench) -> None:
        readings = readings_of(bench)
        bench.pool.open_session("s", "a", 0)
        for page_count in (3, 5):
            await bench.lease("s", page_count)
            memory = (await readings.read()).memory
            assert memory is not None
            assert memory.pages_bytes == len(driver.created) * 4096
        assert driver.asked == 2

    at_work(driver, story)


def test_a_driver_that_hangs_keeps_no_other_figure_and_is_not_asked_again_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics_reading, "MEMORY_MAX_AGE_S", 0.0)
    monkeypatch.setattr(metrics_reading, "MEMORY_WITHIN_S", 0.01)
    driver = SlowMemory()

    async def story(bench: Bench) -> None:
        readings = readings_of(bench)
        driver.may_answer.clear()
        for _ in range(3):
            samples = await samples_of(readings)
            assert "vattd_device_free_bytes" not in samples
            assert samples['vattd_pool_pages{state="unbacked"}'] == str(MAX_PAGES)
        assert driver.asked == 1
        driver.may_answer.set()
        monkeypatch.setattr(metrics_reading, "MEMORY_WITHIN_S", 10.0)
        assert (await samples_of(readings))["vattd_device_free_bytes"] == str(1 << 30)

    at_work(driver, story)


def test_a_device_that_does_not_say_has_no_figures_and_that_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = SlowMemory()
    driver.error = DriverError("nothing", "nvmlDeviceGetMemoryInfo")

    async def story(bench: Bench) -> None:
        readings = readings_of(bench)
        samples = await samples_of(readings)
        assert not [name for name in samples if name.startswith("vattd_device_") and name.endswith("_bytes")]
        assert samples['vattd_driver_errors_total{call="memory",code="DRIVER_ERROR"}'] == "1"
        assert samples['vattd_driver_call_seconds_count{call="memory"}'] == "1"

    at_work(driver, story)


@pytest.mark.parametrize(("pages_bytes", "other"), [(500, "200"), (900, "0")])
def test_what_other_programs_use_is_what_is_left_and_never_below_zero(pages_bytes: int, other: str) -> None:
    class Crowded(FakeDriver):
        def memory(self) -> DeviceMemory:
            return DeviceMemory(total_bytes=1000, free_bytes=300, pages_bytes=pages_bytes)

    async def story(bench: Bench) -> None:
        assert (await samples_of(readings_of(bench)))["vattd_device_other_bytes"] == other

    at_work(Crowded(), story)


@pytest.mark.parametrize(
    ("error", "short", "lost"), [(OutOfMemory("full"), "1", "0"), (DeviceLost("an uncorrectable error"), "0", "1")]
)
def test_a_short_device_and_a_lost_one_are_seen(error: DriverError, short: str, lost: str) -> None:
    driver = FakeDriver()
    driver.fail = fail_on("create", error)

    async def story(bench: Bench) -> None:
        readings = readings_of(bench)
        bench.pool.open_session("s", "a", 0)
        before = await samples_of(readings)
        assert before["vattd_device_short"] == before["vattd_device_lost"] == "0"
        with pytest.raises(type(error)):
            await bench.lease("s", 1)
        after = await samples_of(readings)
        assert (after["vattd_device_short"], after["vattd_device_lost"]) == (short, lost)

    at_work(driver, story)


def test_a_reading_does_not_change_with_what_it_was_taken_of() -> None:
    def facts(reading: Reading) -> object:
        return repr(reading)

    async def story(bench: Bench) -> None:
        readings = readings_of(bench)
        bench.pool.open_session("s", "a", 0)
        await bench.lease("s", 2, purpose=Purpose.ADMIT)
        reading = await readings.read()
        before = facts(reading)
        runs = await bench.lease("s", 3, purpose=Purpose.ADMIT)
        bench.pool.record.refused("s", 1, OutOfMemory("x"))
        bench.pool.pressure.reclaims.counts.asked += 1
        bench.pool.report_usage("s", Usage(mapped_pages=1))
        bench.pool.give_back("s", runs)
        bench.pool.end_session("s", unmapped=False)
        bench.pool.happenings.note_end(EndCause.EXITED, tenant="a", session_id="s", page_count=2)
        assert facts(reading) == before
        assert facts(await readings.read()) != before

    at_work(FakeDriver(), story)


def test_all_figures_of_a_tenant_agree() -> None:
    async def story(bench: Bench) -> None:
        pool = bench.pool
        pool.configure("a", Guarantee(min_pages=4, max_pages=40, weight=3), Access(frozenset([0])))
        for session_id, tenant in (("s", "a"), ("t", "a"), ("u", "b")):
            pool.open_session(session_id, tenant, 0)
        await bench.lease("s", 8)
        await bench.lease("t", 2)
        pool.report_usage("s", Usage(6, 4096, 8 * 4096, 2 * 4096, 7 * 4096))
        waiting = asyncio.ensure_future(
            bench.lease("s", 32, purpose=Purpose.ADMIT, deadline_s=asyncio.get_running_loop().time() + 60)
        )
        await bench.until(lambda: pool.policy.wishes.has_queue)
        samples = await samples_of(readings_of(bench, fenced=("t", "x"), awaited=("x",)))
        waiting.cancel()
        page = 4096
        for name, figure in {
            "sessions": 2,
            "tenant_leased_bytes": 10 * page,
            "tenant_mapped_bytes": 6 * page,
            "tenant_idle_bytes": 4 * page,
            "tenant_token_bytes": page,
            "tenant_utilization_ratio": 1 / 6,
            "tenant_min_bytes": 4 * page,
            "tenant_max_bytes": 40 * page,
            "tenant_weight": 3,
            "tenant_granted_bytes_total": 10 * page,
            "tenant_waiting_leases": 1,
            "tenant_waiting_bytes": 32 * page,
            "tenant_missing_bytes": 0,
            "tenant_promise_broken": 0,
        }.items():
            assert float(samples[f'vattd_{name}{{tenant="a"}}']) == figure, name
        for baseline, saved_pages in (("static_reservation", 2), ("paged16", -4), ("paged256", 1)):
            sample = f'vattd_tenant_saved_bytes{{tenant="a",baseline="{baseline}"}}'
            assert float(samples[sample]) == saved_pages * page
        assert float(samples['vattd_tenant_longest_wait_seconds{tenant="a"}']) > 0
        # Of who has nothing mapped, and no max, nothing is said.
        assert 'vattd_tenant_utilization_ratio{tenant="b"}' not in samples
        assert 'vattd_tenant_max_bytes{tenant="b"}' not in samples
        # The session that is awaited is not shown as fenced too.
        assert samples["vattd_sessions_fenced"] == "1"
        assert sum(float(value) for name, value in samples.items() if name.startswith("vattd_pool_bytes{")) == float(
            samples["vattd_pool_max_bytes"]
        )

    at_work(FakeDriver(), story)


def test_leases_are_counted_by_purpose_and_refusals_by_tenant_and_reason() -> None:
    async def story(bench: Bench) -> None:
        pool = bench.pool
        pool.open_session("s", "a", 0)
        await bench.lease("s", 3)
        await bench.lease("s", 2, purpose=Purpose.ADMIT)
        await bench.lease("s", 2, purpose=Purpose.ADMIT)
        pool.record.refused("s", 1, OutOfMemory("x"))
        samples = await samples_of(readings_of(bench))
        for purpose, leases, pages in (("admit", 2, 4), ("grow", 1, 3), ("ahead", 0, 0)):
            assert samples[f'vattd_leases_total{{purpose="{purpose}"}}'] == str(leases)
            assert samples[f'vattd_lease_pages_total{{purpose="{purpose}"}}'] == str(pages)
            assert samples[f'vattd_lease_duration_seconds_count{{purpose="{purpose}"}}'] == str(leases)
        assert samples['vattd_lease_wait_seconds_count{tenant="a"}'] == "2"
        assert samples['vattd_lease_refusals_total{tenant="a",reason="OUT_OF_MEMORY"}'] == "1"
        assert samples['vattd_events_total{kind="lease_granted"}'] == "3"
        assert samples['vattd_events_total{kind="recovery_ended"}'] == "0"

    at_work(FakeDriver(), story)


def test_a_tenant_that_is_forgotten_has_no_figures_any_more() -> None:
    async def story(bench: Bench) -> None:
        readings = readings_of(bench)
        bench.pool.open_session("s", "gone", 0)
        await bench.lease("s", 2, purpose=Purpose.ADMIT)
        bench.pool.record.refused("s", 1, OutOfMemory("x"))
        assert any("gone" in name for name in await samples_of(readings))
        bench.pool.end_session("s", unmapped=True)
        await bench.until(lambda: bench.ledger.tenant("gone") is None)
        assert not [name for name in await samples_of(readings) if "gone" in name]

    at_work(FakeDriver(), story)


def test_every_kind_of_event_and_every_cause_has_a_sample_before_it_happens() -> None:
    async def story(bench: Bench) -> None:
        samples = await samples_of(readings_of(bench))
        assert {f'vattd_events_total{{kind="{kind.value}"}}' for kind in Kind} <= samples.keys()
        assert {f'vattd_session_ends_total{{cause="{cause.value}"}}' for cause in EndCause} <= samples.keys()

    at_work(FakeDriver(), story)
