"""vattd's own life: start, refuse to start, stop, and what it leaves behind."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import grpc
import pytest

from tests.cudasim import World
from tests.daemon import READY_WITHIN_S, Vattd, patched, run_command
from tests.raw_engine import RawEngine, page_count_of, reason_of
from vatt.sockets import make_directory
from vatt.v1 import vatt_pb2 as pb
from vattd.daemon import EXIT_BUG

# However many sessions there are, and whether they read or not.
STOP_WITHIN_S = 5.0


def test_without_a_gpu_it_takes_the_host_and_says_so() -> None:
    with Vattd("--pool-max", "64MiB", device=None, env={"CUDA_VISIBLE_DEVICES": ""}) as vattd:
        assert vattd.ready["device"] == "host"
        assert "no GPU that can be used here" in vattd.log
        assert vattd.status().device.backend == "host"


def test_a_gpu_that_is_not_there_is_an_error_that_names_the_way_out() -> None:
    result = run_command(["vattd", "start", "--gpu", "0", "--metrics-address", "off"])
    assert result.returncode == 1
    assert "--gpu host" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pool-max", "lots"], "8GiB"),
        (["--pool-max", "150%"], "--pool-max: '150%' is more than 100%"),
        (["--pool-max", "1KiB"], "less than one page"),
        (["--pool-max", "1000TiB"], "more than the"),
        (["--pool-max", "1MiB", "--pool-min", "2MiB"], "--pool-min 2MiB is more than --pool-max 1MiB"),
        (["--page-size", "0"], "page"),
        (["--page-size", "5000"], "power of two"),
        (["--huge-pages", "--gpu", "0"], "add --gpu host"),
        (["--scrub", "sometimes"], "cross-tenant"),
        (["--scrub", "never", "--isolate"], "leave one of them out"),
        (["--metrics-address", "nowhere"], "127.0.0.1:9410"),
        (["--metrics-address", "127.0.0.1:99999"], "127.0.0.1:9410"),
        (["--metrics-address", "0.0.0.0:0"], "say --metrics-insecure if that is meant"),
        (["--metrics-address", "[::]:0"], "say --metrics-insecure if that is meant"),
        (["--metrics-cert", "/etc/hostname"], "give both, or none"),
        (["--metrics-client-ca", "/etc/hostname"], "needs TLS"),
        (["--metrics-password-file", "/nowhere"], "does not exist"),
        (["--metrics-password-file", "/etc/hostname"], "--metrics-address off, and options that say how"),
        (["--gpu", "nonsense"], "not a device"),
        (["--gpu", ""], "--gpu is empty"),
        (["--socket-dir", "/tmp/" + "x" * 100], "longer than"),
        (["--socket-dir", "/proc/nowhere"], "choose another --socket-dir"),
    ],
)
def test_bad_arguments_are_refused_in_words(arguments: list[str], words: str, tmp_path: Path) -> None:
    defaults = ["--gpu", "host", "--socket-dir", str(tmp_path), "--metrics-address", "off"]
    result = run_command(["vattd", "start", *defaults, *arguments])
    assert result.returncode in (1, 2), result.stderr  # refused, or not even understood
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_huge_pages_are_lent_where_they_are_set_aside_and_else_refused_with_the_command(tmp_path: Path) -> None:
    if int(Path("/proc/sys/vm/nr_hugepages").read_text()) == 0:
        defaults = ["--gpu", "host", "--socket-dir", str(tmp_path), "--metrics-address", "off"]
        result = run_command(["vattd", "start", *defaults, "--huge-pages"])
        assert result.returncode == 1
        assert "sysctl -w vm.nr_hugepages=" in result.stderr
        return
    with Vattd("--pool-max", "2MiB", "--huge-pages") as vattd, RawEngine(vattd.sockets) as engine:
        assert page_count_of(engine.lease(1)) == 1
        assert vattd.status().pool.page_size_bytes == 2 << 20


def test_a_second_vattd_for_the_same_device_is_refused_and_harms_nothing() -> None:
    with Vattd("--pool-max", "64MiB") as first:
        second = run_command(
            ["vattd", "start", "--gpu", "host", "--socket-dir", str(first.socket_dir), "--metrics-address", "off"]
        )
        assert second.returncode == 1
        assert f"runs already (pid {first.pid})" in second.stderr
        with RawEngine(first.sockets) as engine:
            assert page_count_of(engine.lease(1)) == 1


def test_sockets_left_by_a_killed_vattd_are_replaced_and_incarnations_grow() -> None:
    with Vattd("--pool-max", "64MiB") as first:
        incarnation = first.status().daemon.incarnation
        first.stop(signal.SIGKILL)
        assert first.sockets.engine.exists(), "nobody was there to remove it"
        environment = {"VATTD_SOCKET_DIR": str(first.socket_dir)}
        command = [sys.executable, "-m", "vattd", "start", "--gpu", "host", "--metrics-address", "off"]
        command += ["--pool-max", "64MiB", "--detach"]
        started = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )
        assert started.returncode == 0, started.stderr
        assert first.status().daemon.incarnation > incarnation
        assert run_command(["vattd", "stop"], environment).returncode == 0


def test_detach_returns_once_it_serves_and_stop_ends_it(tmp_path: Path) -> None:
    environment = {"VATTD_SOCKET_DIR": str(tmp_path)}
    started = run_command(["vattd", "start", "--gpu", "host", "--metrics-address", "off", "--detach"], environment)
    assert started.returncode == 0, started.stderr
    assert "serves host" in started.stderr
    assert run_command(["vattctl", "status"], environment).returncode == 0
    stopped = run_command(["vattd", "stop"], environment)
    assert stopped.returncode == 0, stopped.stderr
    assert not (tmp_path / "host" / "engine.sock").exists()
    assert run_command(["vattd", "stop"], environment).returncode == 3


def test_detach_tells_why_it_could_not_start(tmp_path: Path) -> None:
    result = run_command(
        ["vattd", "start", "--gpu", "host", "--pool-max", "1000TiB", "--detach"], {"VATTD_SOCKET_DIR": str(tmp_path)}
    )
    assert result.returncode == 1
    assert "more than the" in result.stderr


def test_metrics_that_cannot_be_served_are_an_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = ["--gpu", "host", "--socket-dir", str(tmp_path), "--metrics-address", address]
        result = run_command(["vattd", "start", *arguments])
    assert result.returncode == 1
    assert "choose another --metrics-address" in result.stderr


def test_metrics_show_what_is_leased_and_what_it_is_used_for() -> None:
    with Vattd("--pool-max", "64MiB", "--metrics-address", "127.0.0.1:0") as vattd:
        with RawEngine(vattd.sockets, "chat") as engine:
            engine.lease(3)
            engine.report(
                mapped_pages=2, token_bytes=5, static_reservation_bytes=640, paged16_bytes=160, paged256_bytes=256
            )
            with urllib.request.urlopen(vattd.ready["metrics"], timeout=10) as answer:
                lines = answer.read().decode().splitlines()
            assert 'vattd_tenant_leased_bytes{tenant="chat"} 196608' in lines
            assert 'vattd_tenant_mapped_bytes{tenant="chat"} 131072' in lines
            assert 'vattd_tenant_token_bytes{tenant="chat"} 5' in lines
            for baseline, size_bytes in (("static_reservation", 640), ("paged16", 160), ("paged256", 256)):
                line = f'vattd_tenant_baseline_bytes{{tenant="chat",baseline="{baseline}"}} {size_bytes}'
                assert line in lines
                assert any(baseline in line for line in lines if line.startswith("# HELP vattd_tenant_baseline_bytes"))
            states = [line for line in lines if line.startswith("vattd_pool_pages{")]
            assert sum(float(line.split()[-1]) for line in states) == 1024
            engine.detach()


def test_sigterm_refuses_leases_answers_who_waits_tells_sessions_and_leaves_pages_with_engines() -> None:
    with Vattd("--pool-max", "1MiB", "--headroom", "0") as vattd, RawEngine(vattd.sockets, "a") as engine:
        runs = engine.lease(16)
        outcome: list[object] = []

        def wait_for_pages() -> None:
            try:
                engine.lease(1, purpose=pb.LEASE_PURPOSE_ADMIT, wait_s=60)
            except grpc.RpcError as error:
                outcome.append(reason_of(error))

        waiter = threading.Thread(target=wait_for_pages)
        waiter.start()
        while not vattd.status().pool.waiting_pages:
            assert waiter.is_alive()
        _, fds = engine.handles.pull([runs[0].run])
        os.pwrite(fds[0], b"still here", runs[0].offset_bytes)
        begin_s = time.monotonic()
        assert vattd.stop() == 0
        assert time.monotonic() - begin_s < STOP_WITHIN_S
        waiter.join()
        assert outcome == ["SHUTTING_DOWN"]
        assert next(engine.stream).notice.kind == pb.Notice.KIND_SHUTTING_DOWN
        assert os.pread(fds[0], 10, runs[0].offset_bytes) == b"still here"
        for fd in fds:
            os.close(fd)
        assert not vattd.sockets.engine.exists()


# What CancelLease then meets.
BUG = """
from vatt.pages import LedgerBug
from vattd.pool import Pool

def cancel(self, session_id, request_id):
    raise LedgerBug("a page is in no state")

Pool.cancel = cancel
"""


def test_a_bug_of_vattds_is_not_told_as_a_lost_device(tmp_path: Path) -> None:
    options = ["--pool-max", "1MiB", "--headroom", "0"]
    with Vattd(*options, env=patched(tmp_path, BUG)) as vattd, RawEngine(vattd.sockets, "a") as engine:
        with pytest.raises(grpc.RpcError):
            engine.stub.CancelLease(pb.CancelLeaseRequest(key=engine.key, request_id="any"))
        notice = next(engine.stream).notice
        assert notice.kind == pb.Notice.KIND_SHUTTING_DOWN
        assert notice.message == "vattd is broken and stops; keep what you hold: a page is in no state"
        assert vattd.process.wait(READY_WITHIN_S) == EXIT_BUG


def test_pages_of_the_minimum_are_there_before_anybody_asks() -> None:
    with Vattd("--pool-max", "8MiB", "--pool-min", "4MiB") as vattd:
        while vattd.pages()["clean"] < 64:
            assert vattd.process.poll() is None
        assert vattd.status().memory.pages_bytes == 4 << 20


def test_memory_of_a_tenant_that_has_gone_goes_back_to_the_system() -> None:
    with Vattd("--pool-max", "8MiB", "--headroom", "0") as vattd:
        with RawEngine(vattd.sockets) as engine:
            engine.lease(64)
            assert vattd.status().memory.pages_bytes == 4 << 20
            engine.detach()
        while vattd.status().memory.pages_bytes:
            assert vattd.process.poll() is None
        assert vattd.pages()["unbacked"] == 128


def test_capacity_moves_from_an_idle_tenant_to_one_that_asks() -> None:
    with Vattd("--pool-max", "4MiB") as vattd, RawEngine(vattd.sockets, "a") as a, RawEngine(vattd.sockets, "b") as b:
        runs = a.lease(64)
        with pytest.raises(grpc.RpcError):
            b.lease(1)
        a.give_back(runs)
        assert page_count_of(b.lease(64)) == 64
        assert vattd.status().memory.pages_bytes == 4 << 20, "never more than the pool's limit"
        a.detach()
        b.detach()


def test_one_tenants_bytes_are_never_seen_by_another() -> None:
    with Vattd("--pool-max", "1MiB") as vattd, RawEngine(vattd.sockets, "a") as a, RawEngine(vattd.sockets, "b") as b:
        for reader, writer in ((b, a), (a, b)):
            runs = writer.lease(16)
            _, fds = writer.handles.pull([runs[0].run])
            for leased in runs:
                os.pwrite(fds[0], b"secret" * 100, leased.offset_bytes)
            writer.give_back(runs)
            theirs = reader.lease(16)
            _, their_fds = reader.handles.pull([theirs[0].run])
            for leased in theirs:
                size = leased.run.page_count * (64 << 10)
                assert os.pread(their_fds[0], size, leased.offset_bytes) == bytes(size)
            reader.give_back(theirs)
            for fd in [*fds, *their_fds]:
                os.close(fd)


def test_torch_and_the_demos_libraries_are_not_in_the_daemon() -> None:
    unwanted = {"torch", "numpy", "transformers"}
    code = f"import sys, vattd.daemon, vattctl.main; print(sorted({unwanted} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    arguments = ["--gpu", "host", "--socket-dir", str(tmp_path), "--metrics-address", "off"]
    result = run_command(["vattd", "start", *arguments])
    assert result.returncode == 1
    assert "no safe place" in result.stderr
    assert "choose another --socket-dir" in result.stderr
    assert run_command(["vattctl", "status", "--socket-dir", str(tmp_path)]).returncode == 1


def test_without_free_descriptors_a_lease_fails_by_name_and_the_daemon_goes_on() -> None:
    with Vattd("--pool-max", "64MiB", "--headroom", "0") as vattd, RawEngine(vattd.sockets) as engine:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        in_use = set(map(int, os.listdir(f"/proc/{vattd.pid}/fd")))
        # The limit is on the number that a new descriptor gets, which is the lowest free one.
        lowest_free = next(number for number in itertools.count() if number not in in_use)
        resource.prlimit(vattd.pid, resource.RLIMIT_NOFILE, (lowest_free, hard))
        with pytest.raises(grpc.RpcError) as caught:
            engine.lease(512)
        assert reason_of(caught.value) == "SYSTEM_LIMIT"
        resource.prlimit(vattd.pid, resource.RLIMIT_NOFILE, (hard, hard))
        runs = engine.lease(512, purpose=pb.LEASE_PURPOSE_ADMIT, wait_s=10)
        assert page_count_of(runs) == 512
        engine.detach()


def test_a_context_that_finds_no_room_on_the_gpu_is_no_end() -> None:
    """Everything is in the pool before the first page must be scrubbed, for which a context is needed."""
    mib = 1 << 20
    pool = ["--pool-min", "400MiB", "--pool-max", "400MiB"]
    with World(memory_bytes=512 * mib) as world, Vattd(*pool, device="0", env=world.env()) as vattd:
        while vattd.pages()["dirty"] < 200:
            assert vattd.process.poll() is None
        with RawEngine(vattd.sockets) as engine:
            runs = engine.lease(8, purpose=pb.LEASE_PURPOSE_ADMIT, wait_s=60)
            assert page_count_of(runs) == 8
            engine.detach()
        assert vattd.pages()["quarantined"] == 0


def test_every_folder_that_is_made_for_the_sockets_is_safe(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    before = os.umask(0)
    try:
        make_directory(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    for folder in (tmp_path / "a", tmp_path / "a" / "b"):
        assert not folder.stat().st_mode & 0o022
