"""vattd ends, engines go on, another vattd knows what they hold: nothing lost, nothing lent twice."""

from __future__ import annotations

import signal
import socket
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.daemon import Vattd, run_command
from tests.e2e.conftest import PAGE, Rig
from tests.e2e.test_chaos import Engine, physical_pages, settled, until, until_all_go_on
from tests.vattctl.command import done, vattctl
from vatt.pages import page_count_of
from vatt.v1 import vatt_pb2 as pb
from vattention import KVCache, KVCacheSpec, Session
from vattention.page_source import LeasePurpose

POOL_PAGES = 256
WITHIN_S = 20.0


def restart(vattd: Vattd, number: signal.Signals = signal.SIGKILL) -> None:
    vattd.stop(number)
    vattd.start()


@pytest.fixture
def host() -> Iterator[Vattd]:
    with Vattd("--pool-max", str(POOL_PAGES * PAGE), "--headroom", "1MiB") as vattd:
        yield vattd


@contextmanager
def stopped(engine: Engine) -> Iterator[None]:
    engine.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        engine.process.send_signal(signal.SIGCONT)


@contextmanager
def running(rig: Rig, *tenants: str) -> Iterator[list[Engine]]:
    """Engines that hold pages; they end well."""
    engines = [Engine(rig, tenant, seed) for seed, tenant in enumerate(tenants)]
    try:
        until(lambda: all(engine.lines["grown"] > 3 for engine in engines), WITHIN_S, "no engine")
        yield engines
        for engine in engines:
            engine.process.terminate()
            assert engine.wait() == 0, engine.last
    finally:
        for engine in engines:
            if engine.process.poll() is None:
                engine.kill()
    until(lambda: settled(rig.vattd.status()), WITHIN_S, "pages are lost")


def session_of(vattd: Vattd, engine: Engine) -> pb.Session:
    return next(session for session in vattd.status().sessions if session.pid == engine.process.pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_session_is_back_with_its_pages_and_goes_on(host: Vattd, number: signal.Signals) -> None:
    with Session.connect("a", socket_dir=host.socket_dir) as session:
        pages = session.lease(40)
        session_id = session.session_id
        restart(host, number)
        more = session.lease(10)
        assert session.session_id == session_id
        status = host.status()
        assert [(one.session_id, one.leased_bytes // PAGE) for one in status.sessions] == [(session_id, 50)]
        assert status.daemon.recovered_sessions_total == 1
        session.give_back(pages)
        session.give_back(more)
        until(lambda: host.pages()["quarantined"] == 0, WITHIN_S, "the memory of what came back does not")
        assert host.pages()["leased"] == 0
        assert sum(extent.page_count for extent in session.lease(POOL_PAGES)) == POOL_PAGES


def test_idle_memory_of_the_vattd_before_is_given_back_once_all_of_a_tenant_are_back(host: Vattd) -> None:
    """A slab lives on in the engines that map it, and so do the pages in it that nobody holds."""
    with (
        Session.connect("a", socket_dir=host.socket_dir) as one,
        Session.connect("a", socket_dir=host.socket_dir) as two,
    ):
        kept = one.lease(10), two.lease(10)
        one.give_back(one.lease(200))
        assert host.status().memory.pages_bytes // PAGE >= 200
        restart(host)
        until(lambda: host.pages()["quarantined"] == 0, WITHIN_S, "idle memory stays taken")
        assert host.pages()["leased"] == 20
        assert sum(extent.page_count for extent in two.lease(POOL_PAGES - 20)) == POOL_PAGES - 20
        assert physical_pages(Rig("host", host, {}, None), []) == POOL_PAGES
        one.give_back(kept[0])


def test_a_silent_sessions_memory_is_kept_and_it_may_come_back_late(rig: Callable[..., Rig]) -> None:
    there = rig(POOL_PAGES, "--recovery-grace", "100ms", "--metrics-address", "127.0.0.1:0")
    vattd = there.vattd
    with running(there, "a", "b") as (engine, other):
        with stopped(engine):
            held = session_of(vattd, engine).leased_bytes
            restart(vattd)
            until_all_go_on([other])
            until(lambda: session_of(vattd, engine).state == "silent", WITHIN_S, "not silent")
            shown = " ".join(vattctl(vattd, "status").stdout.split())
            assert "of the sessions of the vattd before, 1 is back; 1 with" in shown
            assert f"keeps its memory; `vattctl evict {session_of(vattd, engine).session_id} --kill`" in shown
            with urllib.request.urlopen(vattd.ready["metrics"], timeout=10) as answer:
                lines = answer.read().decode().splitlines()
            values = dict(line.split() for line in lines if line.startswith(("vattd_sessions_", "vattd_unclaimed")))
            assert float(values["vattd_unclaimed_bytes"]) == held
            assert float(values["vattd_sessions_awaited"]) == float(values["vattd_sessions_recovered_total"]) == 1
            for _ in range(20):
                assert session_of(vattd, engine).leased_bytes == held
                assert physical_pages(there, [engine.process.pid, other.process.pid]) <= POOL_PAGES
        until(lambda: session_of(vattd, engine).state == "attached", WITHIN_S, "not back")
        until_all_go_on([engine, other])
        assert vattd.status().daemon.lost_sessions_total == 0


def test_the_memory_of_an_engine_that_ended_while_no_vattd_ran_is_there_again(rig: Callable[..., Rig]) -> None:
    there = rig(POOL_PAGES)
    engine = Engine(there, "a", 1)
    until(lambda: engine.lines["grown"] > 3, WITHIN_S, "no engine")
    there.vattd.stop(signal.SIGKILL)
    engine.kill()
    there.vattd.start()
    assert settled(there.vattd.status())
    assert not there.vattd.status().tenants


def test_an_engine_that_ends_before_it_is_back_leaves_nothing_behind(rig: Callable[..., Rig]) -> None:
    there = rig(POOL_PAGES)
    with running(there, "a") as (other,):
        engine = Engine(there, "a", 1)
        until(lambda: engine.lines["grown"] > 3, WITHIN_S, "no engine")
        engine.process.send_signal(signal.SIGSTOP)
        restart(there.vattd)
        assert session_of(there.vattd, engine).state == "recovering"
        engine.kill()
        until_all_go_on([other])
        until(lambda: there.vattd.status().daemon.lost_sessions_total == 1, WITHIN_S, "it is waited for yet")


def test_vattd_is_replaced_while_engines_serve(rig: Callable[..., Rig]) -> None:
    there = rig(POOL_PAGES)
    first = there.vattd.process
    with running(there, "a") as engines:
        there.vattd.start("--replace")
        assert first.wait(WITHIN_S) == 0
        assert there.vattd.status().daemon.pid != first.pid
        until(lambda: there.vattd.status().daemon.recovered_sessions_total == 1, WITHIN_S, "it is not back")
        until_all_go_on(engines)


def test_what_an_idle_engine_uses_is_known_to_the_next_vattd_too(host: Vattd) -> None:
    spec = KVCacheSpec(
        num_layers=2,
        num_kv_heads=1,
        head_size=64,
        dtype=torch.float32,
        max_batch_size=1,
        max_context_length=4096,
    )
    with Session.connect("chat", socket_dir=host.socket_dir) as session, KVCache(session, spec) as cache:
        cache.grow(cache.acquire_slot(), 1000)

        def used() -> tuple[int, int]:
            [tenant] = host.status().tenants
            return tenant.mapped_bytes, tenant.token_bytes

        until(lambda: used()[1] == 1000 * spec.token_bytes, WITHIN_S, "its tokens are not told")
        before = used()
        for number in (signal.SIGKILL, signal.SIGTERM):
            restart(host, number)
            until(lambda: used() == before, WITHIN_S, "the next vattd is not told")


@contextmanager
def leasing_all_the_time(vattd: Vattd, thread_count: int = 4) -> Iterator[Callable[[], int]]:
    """Sessions that lease and return without a pause; how many times they have. An error ends the test."""
    done: Counter[int] = Counter()
    stop = threading.Event()

    def work(number: int) -> None:
        with Session.connect(f"t{number}", socket_dir=vattd.socket_dir, patience_s=WITHIN_S) as session:
            while not stop.is_set():
                session.give_back(session.lease(2, purpose=LeasePurpose.ADMIT, wait_s=WITHIN_S))
                done[number] += 1

    with ThreadPoolExecutor(thread_count) as threads:
        try:
            working = [threads.submit(work, number) for number in range(thread_count)]

            def all_did() -> int:
                for one in working:
                    if one.done():
                        one.result()  # it ended by an error, which is raised here
                return min(done[number] for number in range(thread_count))

            until(lambda: all_did() > 0, WITHIN_S, "nobody leases")
            yield all_did
        finally:
            stop.set()
        for one in working:
            one.result()


@pytest.mark.parametrize("way", ["stop and start", "replace"])
def test_no_lease_fails_while_vattd_ends_in_order_and_another_one_starts(way: str) -> None:
    # To end its metrics takes vattd a moment, in which its sockets are there yet.
    with (
        Vattd("--pool-max", "16MiB", "--metrics-address", "127.0.0.1:0") as host,
        leasing_all_the_time(host) as all_did,
    ):
        for _ in range(4):
            before = all_did()
            if way == "replace":
                first = host.process
                host.start("--replace")
                assert first.wait(WITHIN_S) == 0
            else:
                assert host.stop(signal.SIGTERM) == 0
                host.start()
            until(lambda before=before: all_did() > before, WITHIN_S, "nobody leases")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--page-size", "128KiB", "--pool-max", "64MiB"], "start with --page-size 65536"),
        (["--pool-max", "64KiB"], "choose a larger --pool-max"),
        (["--pool-max", "150%"], "100%"),
    ],
)
def test_a_vattd_that_could_not_go_on_replaces_none(host: Vattd, options: list[str], words: str) -> None:
    with Session.connect("a", socket_dir=host.socket_dir) as session:
        session.lease(40)
        command = ["vattd", "start", "--gpu", "host", "--socket-dir", str(host.socket_dir), "--metrics-address", "off"]
        result = run_command([*command, "--replace", *options])
        assert result.returncode in (1, 2)
        assert words in " ".join(result.stderr.split())
        assert host.process.poll() is None
        session.give_back(session.lease(1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--config", "{folder}/bad.toml"], "is not TOML"),
        (["--pool-max", "8MiB"], "the mins would be 12.0 MiB"),
        (["--metrics-cert", "{folder}/bad.toml", "--metrics-key", "{folder}/bad.toml"], "cannot use --metrics-cert"),
        (["--state-dir", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_a_vattd_that_could_not_start_replaces_none(
    host: Vattd, tmp_path: Path, options: list[str], words: str
) -> None:
    (tmp_path / "bad.toml").write_text("[tenants.chat\n")
    (tmp_path / "bad.toml").chmod(0o600)
    here = ["--socket-dir", str(host.socket_dir)]
    done(host, "reserve", "chat", "--min", "12MiB")
    command = ["vattd", "start", "--gpu", "host", *here, "--metrics-address", "127.0.0.1:0", "--replace"]
    result = run_command([*command, *(option.format(folder=tmp_path) for option in options)])
    assert result.returncode == 1
    assert words in " ".join(result.stderr.split())
    assert host.process.poll() is None
    assert host.status().daemon.state == "serving"


def test_pages_stay_as_large_as_engines_have_them_unless_somebody_says_otherwise(host: Vattd) -> None:
    """Else a much larger pool would have larger ones by default."""
    first = host.process
    with Session.connect("a", socket_dir=host.socket_dir) as session:
        session.lease(4)
        host.start("--replace", "--pool-max", "9GiB")
        assert first.wait(WITHIN_S) == 0
        assert host.status().pool.page_size_bytes == PAGE
        assert page_count_of(session.lease(4)) == 4


def test_a_vattd_that_finds_no_place_for_its_metrics_replaces_the_other_and_says_so(host: Vattd) -> None:
    first = host.process
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        host.start("--replace", "--metrics-address", f"127.0.0.1:{taken.getsockname()[1]}")
        assert first.wait(WITHIN_S) == 0
        assert host.ready["metrics"].startswith("off (cannot serve metrics on 127.0.0.1:")
        assert host.status().daemon.state == "serving"


def test_without_a_vattd_to_replace_one_is_started(host: Vattd) -> None:
    host.stop()
    host.start("--replace")
    assert host.status().daemon.state == "serving"
