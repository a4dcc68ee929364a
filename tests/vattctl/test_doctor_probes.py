"""Where the doctor's facts come from: drivers, files of the kernel, and real vattds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cudasim import World
from tests.daemon import Vattd, patched
from vatt.protocol import MAX_VERSION, MIN_VERSION
from vatt.sockets import Sockets
from vattctl.doctor.checks.sockets import USUAL_METRICS
from vattctl.doctor.collect import DRIVER_PROBE, collect
from vattctl.doctor.facts import UNLIMITED, Answer, Daemon, Distribution, Is, Metrics, Trouble
from vattctl.doctor.probes import metrics as metrics_probe
from vattctl.doctor.probes.child import Child
from vattctl.doctor.probes.daemons import read_daemons, read_directories, read_other_places
from vattctl.doctor.probes.hardware import read_hardware
from vattctl.doctor.probes.software import read_software
from vattctl.doctor.probes.system import read_container, read_kernel, read_limits, read_memory
from vattd.config import DEFAULT_METRICS_ADDRESS

POOL = ("--gpu", "host", "--pool-max", "64MiB")
ROOT_DEVICE = os.stat("/").st_dev


def look(socket_dir: Path) -> list[Daemon]:
    return read_daemons(read_directories([socket_dir], True, ROOT_DEVICE))


def files(root: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def module(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> str:
    """The name of one that children can run."""
    (folder / "said_by_a_test.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *sys.path]))
    return "said_by_a_test"


# Children


def test_a_child_says_what_it_found_in_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = module(tmp_path, monkeypatch, """print("chatter"); print('{"answer": "given", "version": 7}')""")
    assert Child(name, "cuda").wait() == (Answer.GIVEN, {"version": 7})


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("raise SystemExit(3)", "exit status 3"),
        ("print('hello')", "it said b'hello"),
        ("", "it said b''"),
        ("""print('{"answer": "maybe"}')""", "it said"),
    ],
)
def test_a_child_that_ends_early_takes_nothing_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    answer, said = Child(module(tmp_path, monkeypatch, code), "cuda").wait()
    assert answer is Answer.CRASH
    assert words in said["error"]


def test_a_child_that_hangs_is_given_up_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = Child(module(tmp_path, monkeypatch, "import time; time.sleep(600)"), "cuda", within_s=0.3)
    assert child.wait() == (Answer.NONE, {"error": "no answer within 0.3 s"})
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_a_child_that_cannot_begin_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, said = Child("no_such_module_of_ours", "cuda").wait()
    assert answer is Answer.CRASH
    assert "No module named no_such_module_of_ours" in said["error"]


# Drivers


def in_world(world: World, monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
    for name, value in world.env(**options).items():  # type: ignore[arg-type]
        monkeypatch.setenv(name, value)


def test_each_gpu_is_asked_for_what_pages_need_and_no_context_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    with World(devices=2) as world:
        in_world(world, monkeypatch)
        facts = collect(os.environ, Path("/nowhere"))
        assert facts.cuda.answer is Answer.GIVEN
        assert facts.cuda.version >= 12000
        assert [gpu.uuid for gpu in facts.cuda.gpus] == [f"GPU-{uuid}" for uuid in world.uuids]
        for gpu in facts.cuda.gpus:
            assert (gpu.has_vmm, gpu.exports_fds, gpu.uses_mps, gpu.compute_mode) == (True, True, Is.NO, 0)
        assert facts.nvml.driver_version
        assert [gpu.uuid for gpu in facts.nvml.gpus] == [gpu.uuid for gpu in facts.cuda.gpus]
        assert not any(gpu.has_mig or gpu.processes for gpu in facts.nvml.gpus)
        assert world.used_bytes(0) == world.used_bytes(1) == 0
        assert world.counters()["cuDevicePrimaryCtxRetain"].calls == 0
        assert world.refused() == 0


def test_what_a_gpu_cannot_do_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with World() as world:
        in_world(world, monkeypatch, mps=True, attributes={102: 0, 103: 0, 20: 3}, mig_devices=2)
        facts = collect(os.environ, Path("/nowhere"))
        [gpu], [nvml] = facts.cuda.gpus, facts.nvml.gpus
        assert (gpu.has_vmm, gpu.exports_fds, gpu.uses_mps, gpu.compute_mode) == (False, False, Is.YES, 3)
        assert nvml.has_mig
        assert [uuid[:4] for uuid in nvml.mig_uuids] == ["MIG-", "MIG-"]


def test_a_driver_that_refuses_is_told_apart_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    without = collect(os.environ, Path("/nowhere"))
    if without.cuda.answer is not Answer.GIVEN:  # on a machine without a GPU
        assert without.cuda.answer is Answer.NO_LIBRARY
        assert "libcuda.so.1" in without.cuda.error
        assert without.nvml.answer is Answer.NO_LIBRARY
    with World() as world:
        in_world(world, monkeypatch)
        world.faults.fail("UNKNOWN", "cuInit")
        facts = collect(os.environ, Path("/nowhere"))
        assert facts.cuda.answer is Answer.REFUSED
        assert facts.cuda.error.startswith("cuInit: CUDA_ERROR_UNKNOWN")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        hidden = collect(os.environ, Path("/nowhere"))
        assert hidden.cuda.answer is Answer.REFUSED
        assert "CUDA_ERROR_NO_DEVICE" in hidden.cuda.error
        assert hidden.software.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_driver_that_hangs_does_not_hang_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    with World() as world:
        in_world(world, monkeypatch)
        world.faults.stall("cuDeviceGetCount")
        cuda, nvml = Child(DRIVER_PROBE, "cuda", within_s=2.0), Child(DRIVER_PROBE, "nvml")
        assert cuda.wait()[0] is Answer.NONE
        assert nvml.wait()[0] is Answer.GIVEN, "asked by itself"


def test_processes_that_compute_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from tests.cudasim.guest import *; ok(cu.cuInit(0)); enter_context(); print('in', flush=True); input()"
    with World() as world:
        in_world(world, monkeypatch)
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "in\n"
            [gpu] = collect(os.environ, Path("/nowhere")).nvml.gpus
            assert [(one.pid, one.name[:6]) for one in gpu.processes] == [(other.pid, "python")]
            assert gpu.total_bytes > gpu.free_bytes
            other.communicate("\n")


# Files


def test_hardware_is_seen_without_any_library(tmp_path: Path) -> None:
    assert not read_hardware({}, tmp_path).is_there
    root = files(
        tmp_path,
        sys__bus__pci__devices__a__vendor="0x10de\n",
        sys__bus__pci__devices__a__class="0x030200\n",
        sys__bus__pci__devices__sound__vendor="0x10de\n",
        sys__bus__pci__devices__sound__class="0x040300\n",
        sys__bus__pci__devices__b__vendor="0x8086\n",
        sys__bus__pci__devices__b__class="0x030000\n",
        dev__nvidia0="",
        dev__nvidiactl="",
        tmp__nvidia_mps__control="",
        sys__class__infiniband__mlx5_0="",
        proc__driver__nvidia__version=(
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (root@x)  Sun\n"
            "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
        ),
    )
    (root / "dev" / "nvidia-caps").mkdir()
    (root / "tmp" / "nvidia_mps").rename(root / "tmp" / "nvidia-mps")
    hardware = read_hardware({}, root)
    assert (hardware.pci_gpus, hardware.module_version, hardware.has_rdma) == (1, "580.65.06", True)
    assert [Path(node.path).name for node in hardware.nodes] == ["nvidia0", "nvidiactl"]
    assert all(node.is_open and node.group for node in hardware.nodes)
    assert hardware.mps_pipe.endswith("/tmp/nvidia-mps")
    assert read_hardware({"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}, root).mps_pipe == ""


def test_the_proprietary_module_says_its_version_too(tmp_path: Path) -> None:
    line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\n"
    assert read_hardware({}, files(tmp_path, proc__driver__nvidia__version=line)).module_version == "535.129.03"


def test_containers_are_told_by_their_marks_and_namespaces(tmp_path: Path) -> None:
    namespaces = tmp_path / "proc" / "self" / "ns"
    namespaces.mkdir(parents=True)
    (namespaces / "pid").symlink_to(f"pid:[{0xEFFFFFFC}]")
    (namespaces / "user").symlink_to("user:[4026533000]")
    none = read_container({}, tmp_path)
    assert (none.kind, none.own_pids, none.own_users) == ("", False, True)
    assert read_container({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path).kind == "kubernetes"
    assert read_container({"container": "lxc"}, tmp_path).kind == "lxc"
    assert read_container({}, files(tmp_path, run__x="")).kind == ""
    (tmp_path / ".dockerenv").touch()
    assert read_container({}, tmp_path).kind == "docker"


def test_limits_and_memory_are_those_of_the_kernel(tmp_path: Path) -> None:
    root = files(
        tmp_path,
        proc__meminfo=(
            "MemTotal: 8192 kB\nMemAvailable: 4096 kB\nSwapTotal: 2048 kB\nSwapFree: 512 kB\nCommitLimit: 100 kB\n"
            "Committed_AS: 60 kB\nHugePages_Total: 3\n"
        ),
        proc__sys__vm__max_map_count="65530\n",
        proc__sys__vm__overcommit_memory="2\n",
        sys__kernel__mm__hugepages__x="",
    )
    huge = root / "sys" / "kernel" / "mm" / "hugepages" / "hugepages-2048kB"
    limits, memory = read_limits(root), read_memory(root)
    assert (limits.max_map_count, limits.overcommit_mode, limits.commit_left_bytes) == (65530, 2, 40 << 10)
    assert (memory.machine_bytes, memory.total_bytes, memory.available_bytes) == (8 << 20, 8 << 20, 4 << 20)
    assert (memory.swap_bytes, memory.swap_used_bytes, memory.huge_pages, memory.shm_bytes) == (
        2 << 20,
        1536 << 10,
        0,
        0,
    )
    huge.mkdir()
    (huge / "nr_hugepages").write_text("512\n")
    (huge / "free_hugepages").write_text("7\n")
    assert (read_memory(root).huge_pages, read_memory(root).huge_pages_free) == (512, 7)


def test_limits_of_this_shell_are_read() -> None:
    code = (
        "import resource; from vattctl.doctor.probes.system import read_limits\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (300, 400))\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))\n"
        "limits = read_limits(); print(limits.nofile_soft, limits.nofile_hard, limits.address_space_bytes)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["300", "400", str(1 << 40)]


def test_the_kernel_is_tried_and_not_guessed_by_its_version() -> None:
    kernel = read_kernel()
    assert kernel.release == os.uname().release
    assert kernel.pidfd_error == kernel.memfd_error == ""
    version = tuple(int(number) for number in kernel.release.split(".")[:2])
    if version >= (6, 5):
        assert kernel.has_peer_pidfd
    assert kernel.refuses_descriptors == (version >= (6, 16))


def test_software_is_read_from_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    software = read_software({"VATTD_VLLM": "1", "HOME": "/root"})
    assert software.python == sys.version_info[:3]
    assert software.environ == {"VATTD_VLLM": "1"}
    needed = {one.name: one for one in software.needed}
    assert {"click", "grpcio", "protobuf", "rich", "cuda-bindings"} <= needed.keys()
    assert all(one.fits for one in software.needed if one.version)
    assert (needed["protobuf"].least, needed["protobuf"].below) == ("7.35.1", "8")
    assert software.torch.least == "2.9"
    assert software.torch.version
    assert "vattd" in software.vllm_plugins


@pytest.mark.parametrize(
    ("version", "fits"),
    [("1.85.1", True), ("1.85.1+cpu", True), ("1.100", True), ("1.85", False), ("2.0rc1", False), ("", False)],
)
def test_versions_are_compared_by_their_numbers(version: str, fits: bool) -> None:
    assert Distribution("x", version, "1.85.1", "2").fits is fits


# vattds


def test_a_vattd_that_serves_is_asked_as_an_engine_and_as_an_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    with Vattd("--pool-max", "64MiB", "--metrics-address", "127.0.0.1:0") as vattd:
        [daemon] = look(vattd.socket_dir)
        assert (daemon.device, daemon.directory, daemon.pid) == ("host", vattd.socket_dir, vattd.pid)
        assert daemon.wire_versions == (MIN_VERSION, MAX_VERSION)
        assert daemon.status is not None
        assert (daemon.status.state, daemon.status.backend, daemon.status.max_bytes) == ("serving", "host", 64 << 20)
        assert -2 <= daemon.status.start_s - daemon.process_start_s <= 20
        assert abs(time.time() - daemon.process_start_s) < 60
        assert daemon.metrics == [Metrics(vattd.ready["metrics"], "")]
        assert not daemon.metrics_hidden
        assert 0 < daemon.nofile <= UNLIMITED
        assert vattd.status().sessions == []
        assert "Traceback" not in vattd.log


def test_a_clock_that_vattd_sees_otherwise_is_seen(tmp_path: Path) -> None:
    behind = "import time; real = time.time; time.time = lambda: real() - 7200\n"
    with Vattd("--pool-max", "64MiB", env=patched(tmp_path, behind)) as vattd:
        [daemon] = look(vattd.socket_dir)
        assert daemon.status is not None
        assert daemon.metrics == []
        assert daemon.status.start_s - daemon.process_start_s == pytest.approx(-7200, abs=30)


def test_what_a_killed_vattd_left_and_a_stopped_one_are_told_apart() -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        vattd.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, vattd.pid, os.WSTOPPED | os.WNOWAIT)  # until it is
        [stopped] = look(vattd.socket_dir)
        assert (stopped.is_stopped, stopped.is_heard, stopped.pid) == (True, False, vattd.pid)
        vattd.stop(signal.SIGKILL)
        [killed] = look(vattd.socket_dir)
        assert (killed.connect_error, killed.is_heard) == ("ECONNREFUSED", False)


def test_who_listens_and_says_nothing_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vattctl.doctor.probes.daemons.WELCOME_WITHIN_S", 0.1)
    with Vattd("--pool-max", "64MiB") as vattd:
        place = Sockets(vattd.socket_dir / "GPU-1")
        place.directory.mkdir(mode=0o700)
        place.engine.touch()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(place.handles))
            listener.listen(1)
            found = {one.device: one for one in look(vattd.socket_dir)}
        assert found["GPU-1"].is_silent
        assert found["host"].is_heard, "one hides no other"


def test_where_sockets_may_not_be_is_told_with_why(tmp_path: Path) -> None:
    place = tmp_path / "place"
    [missing] = read_directories([place], False, ROOT_DEVICE)
    assert (missing.exists, missing.trouble) == (False, Trouble.NONE)
    place.mkdir()
    place.chmod(0o777)
    [open_to_all] = read_directories([place], True, ROOT_DEVICE)
    assert (open_to_all.trouble, open_to_all.is_chosen) == (Trouble.UNSAFE, True)
    assert read_daemons([open_to_all]) == []
    place.chmod(0o700)
    [safe] = read_directories([place, place], False, ROOT_DEVICE)
    assert (safe.exists, safe.trouble) == (True, Trouble.NONE)
    [long] = read_directories([tmp_path / ("x" * 100)], False, ROOT_DEVICE)
    assert long.trouble is Trouble.TOO_LONG
    (place / ("x" * 90)).mkdir()
    [long_inside] = read_directories([place], False, ROOT_DEVICE)
    assert long_inside.trouble is Trouble.TOO_LONG


def test_a_vattd_elsewhere_is_found_in_the_kernels_list(tmp_path: Path) -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        assert vattd.socket_dir in read_other_places([])
        assert vattd.socket_dir not in read_other_places(read_directories([vattd.socket_dir], True, ROOT_DEVICE))
    assert vattd.socket_dir not in read_other_places([])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_another_user_may_not_see_is_told_and_not_guessed() -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from vattctl.doctor.probes.daemons import read_daemons, read_directories\n"
        "os.setgroups([]); os.setgid(12345); os.setuid(12345)\n"
        "[one] = read_daemons(read_directories([Path(sys.argv[1])], True, 0))\n"
        "print(one.is_heard, one.status, one.status_error, one.nofile, one.metrics, one.metrics_hidden, sep='|')"
    )
    with Vattd("--pool-max", "64MiB", "--metrics-address", "127.0.0.1:0") as vattd:
        vattd.socket_dir.chmod(0o755)
        command = [sys.executable, "-c", code, str(vattd.socket_dir)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    heard, status, why, nofile, metrics, are_hidden = done.stdout.strip().split("|")
    assert (heard, status, nofile, metrics, are_hidden) == ("True", "None", "0", "[]", "True")
    assert "open to its owner only" in why


def test_metrics_answer_also_with_a_password_and_in_tls(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("user:secret\n")
    password.chmod(0o600)
    with Vattd(
        "--pool-max", "64MiB", "--metrics-address", "127.0.0.1:0", "--metrics-password-file", str(password)
    ) as vattd:
        assert metrics_probe.read_metrics(vattd.pid) == ([Metrics(vattd.ready["metrics"], "")], False)


def test_the_usual_port_is_vattds_default_and_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{metrics_probe.USUAL_HOST}:{metrics_probe.USUAL_PORT}" == DEFAULT_METRICS_ADDRESS == USUAL_METRICS
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(metrics_probe, "USUAL_PORT", taken.getsockname()[1])
        assert metrics_probe.usual_port_error() == "Address already in use"
    assert metrics_probe.usual_port_error() == ""


def test_who_listens_and_does_not_answer_is_told_with_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_probe, "WITHIN_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found, are_hidden = metrics_probe.read_metrics(os.getpid())
        port = silent.getsockname()[1]
        [one] = [one for one in found if one.url == f"http://127.0.0.1:{port}/metrics"]
        assert "timed out" in one.error
        assert not are_hidden


def test_an_address_of_all_is_asked_at_the_loopback_one() -> None:
    for family, any_host, loopback in ((socket.AF_INET, "0.0.0.0", "127.0.0.1"), (socket.AF_INET6, "::", "[::1]")):
        with socket.create_server((any_host, 0), family=family) as listener:
            port = listener.getsockname()[1]
            with ThreadPoolExecutor(1) as threads:
                asked = threads.submit(metrics_probe.read_metrics, os.getpid())
                for _ in range(2):  # plain, then TLS
                    listener.accept()[0].close()
            assert f"http://{loopback}:{port}/metrics" in [one.url for one in asked.result()[0]]
