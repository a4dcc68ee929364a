"""What a real vattd shows to whoever scrapes it."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

from tests.cudasim import MIB, World
from tests.daemon import Vattd
from tests.operator import operator
from tests.raw_engine import RawEngine, close_all, in_thread, reason_of
from vatt.v1 import vatt_pb2 as pb

OPTIONS = ("--pool-max", "64MiB", "--headroom", "0", "--metrics-address", "127.0.0.1:0")
ENGINE = 'grpc_type="unary",grpc_service="vatt.v1.EngineService"'
ATTACH = 'grpc_type="server_stream",grpc_service="vatt.v1.EngineService",grpc_method="Attach"'
WITHIN_S = 20.0


class Scrape:
    """One scrape's text, and its samples by name and labels."""

    def __init__(self, vattd: Vattd) -> None:
        with urllib.request.urlopen(vattd.ready["metrics"], timeout=10) as answer:
            self.text: str = answer.read().decode()
        lines = [line for line in self.text.splitlines() if not line.startswith("#")]
        self.samples = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def __getitem__(self, name: str) -> float:
        return self.samples[name]

    def sum_of(self, name: str) -> float:
        """Over all labels."""
        return sum(value for sample, value in self.samples.items() if sample.startswith(f"{name}{{"))


@pytest.fixture(params=["host", "cuda"])
def vattd(request: pytest.FixtureRequest) -> Iterator[Vattd]:
    with ExitStack() as stack:
        if request.param == "cuda":
            world = stack.enter_context(World(memory_bytes=1024 * MIB, context_bytes=100 * MIB))
            yield stack.enter_context(Vattd(*OPTIONS, device="0", env=world.env()))
        else:
            yield stack.enter_context(Vattd(*OPTIONS, "--page-size", "2MiB"))


def scrape_until(vattd: Vattd, name: str, value: float) -> Scrape:
    until_s = time.monotonic() + WITHIN_S
    while (scrape := Scrape(vattd)).samples.get(name) != value:
        assert time.monotonic() < until_s, f"{name} is {scrape.samples.get(name)}"
    return scrape


def test_what_is_done_is_counted(vattd: Vattd) -> None:
    page = 2 * MIB
    with RawEngine(vattd.sockets, "a") as engine, RawEngine(vattd.sockets, "b") as other:
        runs = engine.lease(4, purpose=pb.LEASE_PURPOSE_ADMIT)
        _, fds = engine.handles.pull([leased.run for leased in runs])
        close_all(fds)
        engine.report(mapped_pages=3, token_bytes=page, static_reservation_bytes=10 * page)
        engine.give_back(runs)
        engine.lease(4)
        other.lease(2)
        with pytest.raises(grpc.RpcError) as refused:
            engine.lease(40)
        assert reason_of(refused.value) == "LIMIT_EXCEEDED"
        other.detach()
        scrape = scrape_until(vattd, f'grpc_server_handled_total{{{ATTACH},grpc_code="OK"}}', 1)
    assert scrape["vattd_pages_recycled_total"] == 4
    assert scrape['vattd_leases_total{purpose="admit"}'] == 1
    assert scrape['vattd_lease_pages_total{purpose="grow"}'] == 6
    assert scrape['vattd_lease_refusals_total{tenant="a",reason="LIMIT_EXCEEDED"}'] == 1
    assert scrape['vattd_tenant_granted_bytes_total{tenant="a"}'] == 8 * page
    assert scrape['vattd_tenant_leased_bytes{tenant="a"}'] == 4 * page
    assert scrape['vattd_session_ends_total{cause="detached"}'] == 1
    assert scrape[f'grpc_server_handled_total{{{ENGINE},grpc_method="LeasePages",grpc_code="OK"}}'] == 3
    assert scrape[f'grpc_server_handled_total{{{ENGINE},grpc_method="LeasePages",grpc_code="ResourceExhausted"}}'] == 1
    assert scrape[f'grpc_server_handling_seconds_count{{{ENGINE},grpc_method="LeasePages"}}'] == 4
    assert scrape['vattd_driver_call_seconds_count{call="create"}'] >= 1
    assert scrape['vattd_driver_call_seconds_count{call="export"}'] == 1
    scrubbed = scrape["vattd_pages_scrubbed_total"]
    assert ('vattd_driver_call_seconds_count{call="scrub"}' in scrape.samples) == (scrubbed > 0)
    device = [scrape[f"vattd_device_{part}_bytes"] for part in ("free", "pages", "other")]
    assert sum(device) == scrape["vattd_device_total_bytes"]
    assert scrape["process_open_fds"] > 3


def test_a_stream_that_breaks_is_counted_and_its_session_is_fenced(vattd: Vattd) -> None:
    with RawEngine(vattd.sockets, "a") as engine:
        engine.stream.cancel()
        scrape = scrape_until(vattd, f'grpc_server_handled_total{{{ATTACH},grpc_code="Canceled"}}', 1)
        assert scrape["vattd_sessions_fenced"] == 1


def test_nothing_names_a_session_a_process_or_a_place(vattd: Vattd) -> None:
    with RawEngine(vattd.sockets, "a") as engine, operator(vattd.sockets) as admin:
        engine.lease(1)
        admin.reserve("a", min_bytes=2 * MIB)
        scrape = Scrape(vattd)
        for label, value in re.findall(r'(\w+)="([^"]*)"', scrape.text):
            assert label == "le" or not re.search(rf"\b{vattd.pid}\b", value), label
            assert engine.key.session_id not in value, label
            assert str(vattd.socket_dir) not in value, label


def test_old_forms_that_prometheus_would_take_for_metrics_of_their_own_are_not_there(vattd: Vattd) -> None:
    with RawEngine(vattd.sockets, "a") as engine:
        engine.lease(1)
        names = {sample.partition("{")[0] for sample in Scrape(vattd).samples}
    assert not [name for name in names if name.endswith("_created")]


def test_methods_that_vattd_does_not_have_add_no_samples(vattd: Vattd) -> None:
    with RawEngine(vattd.sockets, "a") as engine:
        for path in ("/vatt.v1.EngineService/Invented", "/invented.Service/Attach", "/vatt.v1.AdminService/GetStatus"):
            call: Any = engine.channel.unary_unary(path)
            with pytest.raises(grpc.RpcError) as caught:
                call(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        text = Scrape(vattd).text
    assert "nvented" not in text
    assert "AdminService" not in text


def test_all_figures_of_one_scrape_are_of_one_instant(vattd: Vattd) -> None:
    page, ends = 2 * MIB, False

    def work() -> int:
        cycles = 0
        with RawEngine(vattd.sockets, "a") as engine:
            while not ends:
                engine.give_back(engine.lease(3))
                cycles += 1
        return cycles

    thread, outcome = in_thread(work)
    try:
        seen = set()
        for _ in range(60):
            scrape = Scrape(vattd)
            assert scrape.sum_of("vattd_pool_bytes") == scrape["vattd_pool_max_bytes"]
            leased = scrape['vattd_pool_bytes{state="leased"}']
            assert scrape.sum_of("vattd_tenant_leased_bytes") == leased
            granted = scrape.sum_of("vattd_tenant_granted_bytes_total")
            assert scrape.sum_of("vattd_lease_pages_total") * page == granted
            leases = scrape.sum_of("vattd_leases_total")
            assert leases == scrape['vattd_events_total{kind="lease_granted"}'] == granted / page / 3
            assert leases == scrape.sum_of("vattd_lease_duration_seconds_count")
            seen.add((leased, granted))
    finally:
        ends = True
        thread.join()
    assert isinstance(outcome[0], int), outcome
    assert len(seen) > 10, "nothing happened meanwhile"


@pytest.mark.monitoring
def test_promtool_finds_nothing_to_say(vattd: Vattd) -> None:
    promtool = shutil.which("promtool") or pytest.fail("promtool is not installed: apt-get install prometheus")
    with RawEngine(vattd.sockets, "a") as engine, operator(vattd.sockets) as admin:
        engine.lease(2, purpose=pb.LEASE_PURPOSE_ADMIT)
        admin.reserve("a", min_bytes=2 * MIB, max_bytes=8 * MIB)
        with pytest.raises(grpc.RpcError):
            engine.lease(100)
        engine.report(mapped_pages=1, token_bytes=5)
        text = Scrape(vattd).text
    result = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
