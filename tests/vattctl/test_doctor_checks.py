"""Each check of the doctor: on a machine where nothing is wrong, and on one where what it looks at is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.typed import OURS, refusal
from tests.vattctl.doctor_facts import (
    DAEMON,
    GIB,
    GPU,
    HEALTHY,
    HOST,
    HOST_DAEMON,
    OTHER_UUID,
    PLACE,
    SERVING,
    UUID,
    but,
    daemon,
    gpu,
    nvml_gpu,
)
from vattctl.doctor import examine as examine_module
from vattctl.doctor.checks import engines, kernel, limits, memory, sockets, software
from vattctl.doctor.checks import gpu as gpu_checks
from vattctl.doctor.examine import examine
from vattctl.doctor.facts import (
    Answer,
    Cuda,
    DeviceNode,
    Directory,
    Distribution,
    Facts,
    GpuProcess,
    Hardware,
    Is,
    Metrics,
    Nvml,
    Trouble,
)
from vattctl.doctor.finding import Finding, State

NOTE, WARNING, BROKEN, OK = State.NOTE, State.WARNING, State.BROKEN, State.OK
PIPE = "/tmp/nvidia-mps"
DOCKER = {"kind": "docker", "own_pids": True, "own_users": False}


def shut(path: str, group: str) -> DeviceNode:
    return DeviceNode(path, False, "crw-rw----", group)


# What is wrong with a machine, the check that sees it, how it judges, and words of what it says and of what to type.
WRONG: list[tuple[str, Facts, str, State, str, str]] = [
    ("a new Python", but(HEALTHY, software={"python": (3, 14, 0)}), "python", NOTE, "3.14.0, which is newer", ""),
    (
        "an old package",
        but(HEALTHY, software={"needed": [Distribution("grpcio", "1.70.0", "1.85.1")]}),
        "packages",
        BROKEN,
        "grpcio>=1.85.1, and 1.70.0 is installed",
        "pip install 'grpcio>=1.85.1'",
    ),
    (
        "a package of the next major version",
        but(HEALTHY, software={"needed": [Distribution("cuda-bindings", "14.0.0", "13", "14")]}),
        "packages",
        BROKEN,
        "cuda-bindings>=13,<14, and 14.0.0",
        "pip install 'cuda-bindings>=13,<14'",
    ),
    (
        "a package that is missing",
        but(HEALTHY, software={"needed": [Distribution("rich", "", "13")]}),
        "packages",
        BROKEN,
        "it is not installed",
        "pip install 'rich>=13'",
    ),
    (
        "a variable with a value that means nothing",
        but(HEALTHY, software={"environ": {"VATTENTION_DAEMON": "yes"}}),
        "environment",
        BROKEN,
        "VATTENTION_DAEMON is 'yes'",
        "unset VATTENTION_DAEMON",
    ),
    (
        "a layout that is none",
        but(HEALTHY, software={"environ": {"VATTENTION_LAYOUT": "flat"}}),
        "environment",
        BROKEN,
        "VATTENTION_LAYOUT is 'flat'",
        "unset VATTENTION_LAYOUT",
    ),
    ("no pidfd", but(HEALTHY, kernel={"pidfd_error": "ENOSYS"}), "pidfd", BROKEN, "ENOSYS", "Linux 5.3"),
    (
        "pidfds that a container forbids",
        but(HEALTHY, kernel={"pidfd_error": "EPERM"}, container=DOCKER),
        "pidfd",
        BROKEN,
        "could not see engines end",
        "seccomp",
    ),
    ("Linux before 6.5", but(HEALTHY, kernel={"has_peer_pidfd": False}), "pidfd", NOTE, "SO_PEERPIDFD", "6.5"),
    ("Linux before 6.16", but(HEALTHY, kernel={"refuses_descriptors": False}), "descriptors", NOTE, "slow", "6.16"),
    ("no memfd", but(HOST, kernel={"memfd_error": "EACCES"}), "memfd", BROKEN, "EACCES", "vm.memfd_noexec=0"),
    ("no memfd beside a GPU", but(HEALTHY, kernel={"memfd_error": "EACCES"}), "memfd", WARNING, "EACCES", "memfd"),
    ("hidepid", but(HEALTHY, kernel={"hides_processes": True}), "proc", WARNING, "hidepid", "sudo vattd start"),
    ("a container", but(HEALTHY, container=DOCKER), "container", NOTE, "a container (docker)", "--pid=host"),
    (
        "a pid namespace",
        but(HEALTHY, container={"own_pids": True}),
        "container",
        NOTE,
        "namespace of its own",
        "hostPID",
    ),
    ("a user namespace", but(HEALTHY, container={"own_users": True}), "container", NOTE, "--allow", ""),
    (
        "few descriptors",
        but(HEALTHY, limits={"nofile_soft": 256, "nofile_hard": 256}),
        "open-files",
        BROKEN,
        "256 descriptors",
        "sudo prlimit --pid $$ --nofile=8192",
    ),
    (
        "few descriptors, and more to be had",
        but(HEALTHY, limits={"nofile_soft": 256, "nofile_hard": 4096}),
        "open-files",
        BROKEN,
        "256 descriptors",
        "ulimit -n 4096",
    ),
    (
        "few descriptors in a container",
        but(HEALTHY, limits={"nofile_soft": 256, "nofile_hard": 256}, container=DOCKER),
        "open-files",
        BROKEN,
        "256 descriptors",
        "docker run --ulimit nofile=8192 ...",
    ),
    (
        "descriptors that are few for vattd",
        but(HEALTHY, limits={"nofile_soft": 1024, "nofile_hard": 4096}),
        "open-files",
        WARNING,
        "1,024 connections",
        "LimitNOFILE=8192",
    ),
    (
        "a vattd of few descriptors",
        but(HEALTHY, **daemon(nofile=1024)),
        "vattd-files",
        WARNING,
        "256 conn",
        "restart it",
    ),
    (
        "RDMA and little locked memory",
        but(HEALTHY, hardware={"has_rdma": True}),
        "memlock",
        WARNING,
        "8.00 MiB of memory may be locked",
        "--memlock=unlimited",
    ),
    (
        "ulimit -v",
        but(HEALTHY, limits={"address_space_bytes": 8 * GIB}),
        "address-space",
        BROKEN,
        "8.00 GiB of addresses",
        "--as=unlimited",
    ),
    (
        "ulimit -f",
        but(HOST, limits={"file_bytes": GIB}),
        "file-size",
        BROKEN,
        "1.00 GiB at most",
        "--fsize=unlimited",
    ),
    ("ulimit -f and GPUs", but(HEALTHY, limits={"file_bytes": GIB}), "file-size", NOTE, "sparse file", "--fsize="),
    (
        "a pool of many small pages",
        but(HOST, daemons=[replace(HOST_DAEMON, status=replace(SERVING, backend="host", page_size_bytes=1 << 16))]),
        "max-map-count",
        WARNING,
        "1,179,648 pages of 64.0 KiB may take 395,264",
        "vm.max_map_count=524288",
    ),
    (
        "a lowered max_map_count, and no vattd yet",
        but(HOST, daemons=[], limits={"max_map_count": 20_000}),
        "max-map-count",
        WARNING,
        "131,072 pages of 256 KiB may take 45,738",
        "--page-size 1024KiB",
    ),
    (
        "strict overcommit",
        but(HEALTHY, limits={"overcommit_mode": 2}),
        "overcommit",
        WARNING,
        "1.00 GiB can still be promised",
        "vm.overcommit_memory=0",
    ),
    (
        "a full host",
        but(HOST, memory={"available_bytes": GIB // 2}),
        "host-memory",
        BROKEN,
        "no page can be made",
        "ps",
    ),
    (
        "a control group's limit",
        but(HOST, memory={"total_bytes": 8 * GIB, "available_bytes": 7 * GIB, "limit": "/sys/fs/cgroup/memory.max"}),
        "host-memory",
        NOTE,
        "7.00 GiB available of 8.00 GiB; the machine has 64.0 GiB, and /sys/fs/cgroup/memory.max allows no more",
        "MemoryMax=",
    ),
    ("swap", but(HOST, memory={"swap_bytes": GIB}), "swap", NOTE, "may be swapped out", "MemorySwapMax=0"),
    (
        "swap in use",
        but(HOST, memory={"swap_bytes": GIB, "swap_used_bytes": GIB}),
        "swap",
        WARNING,
        "1.00 GiB used",
        "--huge-pages",
    ),
    (
        "no free huge pages",
        but(HOST, memory={"huge_pages": 512}),
        "huge-pages",
        NOTE,
        "0 of 512",
        "vm.nr_hugepages=1024",
    ),
    ("Docker's /dev/shm", but(HEALTHY, memory={"shm_bytes": 64 << 20}), "shm", WARNING, "64.0 MiB", "/dev/shm"),
    (
        "a driver that hangs",
        but(HEALTHY, cuda=Cuda(Answer.NONE, "no answer within 20 s")),
        "driver",
        BROKEN,
        "hangs: no answer within 20 s",
        "dmesg",
    ),
    ("a driver that crashes", but(HEALTHY, cuda=Cuda(Answer.CRASH, "SIGSEGV")), "driver", BROKEN, "SIGSEGV", "dmesg"),
    ("no GPU", HOST, "driver", NOTE, "no NVIDIA GPU", ""),
    (
        "a GPU without a driver",
        but(HOST, hardware={"pci_gpus": 1}),
        "driver",
        BROKEN,
        "there is an NVIDIA GPU, and cuInit: libcuda.so.1 was not found",
        "install the NVIDIA driver",
    ),
    (
        "a container without the driver",
        but(HOST, hardware={"pci_gpus": 1}, container=DOCKER),
        "driver",
        BROKEN,
        "in this container",
        "docker run --gpus all",
    ),
    (
        "CUDA_VISIBLE_DEVICES that hides all",
        but(
            HEALTHY,
            cuda=Cuda(Answer.REFUSED, "cuInit: CUDA_ERROR_NO_DEVICE"),
            software={"environ": {"CUDA_VISIBLE_DEVICES": ""}},
        ),
        "driver",
        WARNING,
        "CUDA_VISIBLE_DEVICES is ''",
        "unset CUDA_VISIBLE_DEVICES",
    ),
    (
        "a driver without a GPU",
        but(HOST, cuda=Cuda(Answer.REFUSED, "cuInit: CUDA_ERROR_NO_DEVICE")),
        "driver",
        NOTE,
        "and no GPU",
        "",
    ),
    (
        "a driver that was updated under the kernel's module",
        but(HEALTHY, cuda=Cuda(Answer.REFUSED, "cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (...)")),
        "driver",
        BROKEN,
        "MISMATCH",
        "sudo reboot",
    ),
    (
        "a driver that refuses",
        but(HEALTHY, cuda=Cuda(Answer.REFUSED, "cuInit: CUDA_ERROR_UNKNOWN")),
        "driver",
        BROKEN,
        "CUDA_ERROR_UNKNOWN",
        "nvidia-smi",
    ),
    ("an old driver", but(HEALTHY, cuda={"version": 11080}), "driver", BROKEN, "is for CUDA 11.8", "update"),
    ("a driver of CUDA 12", but(HEALTHY, cuda={"version": 12040}), "driver", NOTE, "CUDA 12.4, 1 GPU", "580"),
    ("NVML that hangs", but(HEALTHY, nvml=Nvml(Answer.NONE, "no answer")), "nvml", BROKEN, "hangs", "sudo reboot"),
    (
        "no NVML in a container",
        but(HEALTHY, nvml=Nvml(Answer.NO_LIBRARY, "NVML Shared Library Not Found"), container=DOCKER),
        "nvml",
        BROKEN,
        "cannot read the GPU's memory: NVML Shared",
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    ),
    (
        "libraries of another version than the module",
        but(HEALTHY, nvml={"driver_version": "580.82.07"}),
        "nvml",
        BROKEN,
        "the kernel module is 580.65.06, and the driver's libraries are 580.82.07",
        "sudo reboot",
    ),
    ("a GPU that NVML does not know", but(HEALTHY, **nvml_gpu(uuid=OTHER_UUID)), "nvml", BROKEN, UUID, "nvidia-smi -L"),
    (
        "device files for a group",
        but(HEALTHY, hardware={"nodes": [shut("/dev/nvidia0", "video")]}),
        "device-nodes",
        BROKEN,
        "/dev/nvidia0 (crw-rw----, group video)",
        'usermod -aG video "$USER"',
    ),
    (
        "device files for root",
        but(HEALTHY, hardware={"nodes": [shut("/dev/nvidia0", "root")]}),
        "device-nodes",
        BROKEN,
        "not open to this user",
        "sudo chmod a+rw /dev/nvidia*",
    ),
    (
        "no nvidia-uvm",
        but(HEALTHY, hardware={"nodes": [DeviceNode("/dev/nvidiactl", True, "crw-rw-rw-", "root")]}),
        "device-nodes",
        BROKEN,
        "/dev/nvidia-uvm is missing",
        "nvidia-modprobe -u",
    ),
    (
        "no device files",
        but(
            HEALTHY,
            cuda=Cuda(Answer.REFUSED, "cuInit: CUDA_ERROR_NO_DEVICE"),
            nvml=Nvml(Answer.REFUSED, "Driver Not Loaded"),
            hardware={"nodes": []},
        ),
        "device-nodes",
        BROKEN,
        "there is no /dev/nvidia*",
        "nvidia-modprobe",
    ),
    ("an MPS daemon", but(HEALTHY, hardware={"mps_pipe": PIPE}), "mps-daemon", NOTE, PIPE, "CUDA_MPS_PIPE_DIRECTORY"),
    (
        "an MPS daemon that the driver does not tell of",
        but(HEALTHY, hardware={"mps_pipe": PIPE}, **gpu(uses_mps=Is.UNKNOWN)),
        "mps-daemon",
        WARNING,
        "before CUDA 12.3",
        "echo quit | nvidia-cuda-mps-control",
    ),
    ("no VMM", but(HEALTHY, **gpu(has_vmm=False)), "vmm", BROKEN, "virtual memory management on A100", "--gpu host"),
    (
        "no VMM on one of two",
        but(HEALTHY, cuda={"gpus": [replace(GPU, has_vmm=False), replace(GPU, ordinal=1)]}),
        "vmm",
        WARNING,
        "no pages can be lent",
        "vattd start --gpu 1",
    ),
    ("no export", but(HEALTHY, **gpu(exports_fds=False)), "fd-export", BROKEN, "by file descriptor", "--gpu host"),
    (
        "MPS before vattd",
        but(HEALTHY, daemons=[], **gpu(uses_mps=Is.YES)),
        "mps",
        BROKEN,
        "vattd does not start from this shell",
        "--allow-mps",
    ),
    (
        "MPS before engines of a vattd that runs",
        but(HEALTHY, **gpu(uses_mps=Is.YES)),
        "mps",
        WARNING,
        "engines from this shell are refused",
        "CUDA_MPS_PIPE_DIRECTORY",
    ),
    ("MPS that nobody tells of", but(HEALTHY, **gpu(uses_mps=Is.UNKNOWN)), "mps", NOTE, "does not say", ""),
    (
        "an exclusive GPU",
        but(HEALTHY, **gpu(compute_mode=3)),
        "compute-mode",
        BROKEN,
        "EXCLUSIVE_PROCESS",
        "-c DEFAULT",
    ),
    ("a forbidden GPU", but(HEALTHY, **gpu(compute_mode=2)), "compute-mode", BROKEN, "no process may", "-c DEFAULT"),
    ("MIG without devices", but(HEALTHY, **nvml_gpu(has_mig=True)), "mig", BROKEN, "no MIG device was made", "-lgip"),
    (
        "MIG devices",
        but(HEALTHY, **nvml_gpu(has_mig=True, mig_uuids=["MIG-1", "MIG-2"])),
        "mig",
        NOTE,
        "split into 2",
        "vattd start --gpu MIG-2",
    ),
    (
        "a GPU that others fill",
        but(
            HEALTHY, daemons=[], **nvml_gpu(free_bytes=20 * GIB, processes=[GpuProcess(7, "python"), GpuProcess(8, "")])
        ),
        "gpu-memory",
        WARNING,
        "other programs hold 60.0 GiB of 80.0 GiB: python (7), a process (8)",
        f"vattd start --gpu {UUID} --pool-max 23%",
    ),
    (
        "a GPU that others fill beside vattd",
        but(HEALTHY, **nvml_gpu(free_bytes=20 * GIB), **daemon(status={"pages_bytes": 40 * GIB})),
        "gpu-memory",
        WARNING,
        "other programs hold 20.0 GiB",
        f"vattd start --replace --detach --gpu {UUID} --pool-max 71%   # and its other",
    ),
    (
        "an unsafe directory",
        but(HEALTHY, directories=[Directory(PLACE, False, True, Trouble.UNSAFE, "no safe place")], daemons=[]),
        "socket-dir",
        BROKEN,
        "no safe place",
        "chmod go-w /run/vattd",
    ),
    (
        "a hidden directory",
        but(HEALTHY, directories=[Directory(PLACE, False, True, Trouble.HIDDEN, "Permission denied")], daemons=[]),
        "socket-dir",
        BROKEN,
        "Permission denied",
        "sudo vattctl doctor --socket-dir /run/vattd",
    ),
    (
        "a long directory",
        but(HEALTHY, directories=[Directory(PLACE, False, True, Trouble.TOO_LONG, "is longer")], daemons=[]),
        "socket-dir",
        BROKEN,
        "is longer",
        "--socket-dir /tmp/vattd",
    ),
    (
        "a chosen directory that is not there",
        but(HEALTHY, directories=[Directory(Path("/x"), True, False)], daemons=[], container=DOCKER),
        "socket-dir",
        WARNING,
        "no such directory",
        "docker run -v /x:/x",
    ),
    ("sockets inside of a container", but(HEALTHY, container=DOCKER), "socket-dir", NOTE, "container only", "-v /run"),
    (
        "another socket directory",
        but(HEALTHY, other_places=[Path("/tmp/v")]),
        "other-places",
        NOTE,
        "/tmp/v",
        "export VATTD_SOCKET_DIR=/tmp/v",
    ),
    ("a vattd of another user", but(HEALTHY, **daemon(nofile=0)), "vattd-files", NOTE, "hidden from this user", ""),
    ("no vattd", but(HEALTHY, daemons=[]), "vattd", NOTE, "none was found", "vattd start"),
    (
        "sockets of a dead vattd",
        but(HEALTHY, **daemon(connect_error="ECONNREFUSED", status=None)),
        "vattd",
        WARNING,
        "nobody listens",
        f"vattd start --gpu {UUID}",
    ),
    (
        "a dead vattd where somebody chose to look",
        but(
            HEALTHY,
            directories=[Directory(Path("/x"), is_chosen=True, exists=True)],
            **daemon(directory=Path("/x"), connect_error="ECONNREFUSED", status=None),
        ),
        "vattd",
        WARNING,
        "nobody listens",
        f"vattd start --gpu {UUID} --socket-dir /x",
    ),
    (
        "another user's vattd",
        but(HEALTHY, **daemon(connect_error="EACCES", status=None)),
        "vattd",
        BROKEN,
        "this user cannot connect (EACCES)",
        "sudo vattctl doctor --socket-dir /run/vattd",
    ),
    ("a stopped vattd", but(HEALTHY, **daemon(is_stopped=True)), "vattd", BROKEN, "is stopped", "kill -CONT 4242"),
    (
        "an engine in another pid namespace",
        but(HEALTHY, **daemon(refusal="the process is in a pid namespace that this one cannot see")),
        "vattd",
        BROKEN,
        "it refuses this process: the process is in a pid namespace",
        "--pid=host",
    ),
    (
        "hidepid, as vattd says",
        but(HEALTHY, **daemon(refusal="see all of /proc")),
        "vattd",
        BROKEN,
        "/proc",
        "hidepid=0",
    ),
    (
        "a crowd, as vattd says",
        but(HEALTHY, **daemon(refusal="too many")),
        "vattd",
        BROKEN,
        "too many",
        "vattctl status",
    ),
    ("a silent vattd", but(HEALTHY, **daemon(is_silent=True)), "vattd", BROKEN, "does not answer", "vattd stop --gpu"),
    (
        "a vattd whose admin socket is not ours",
        but(HEALTHY, **daemon(status=None, status_error="open to its owner only")),
        "vattd",
        NOTE,
        "open to its owner only",
        "sudo vattctl doctor --socket-dir /run/vattd",
    ),
    ("a lost device", but(HEALTHY, **daemon(status={"state": "device_lost"})), "vattd", BROKEN, "device_lost", "xid"),
    ("a short device", but(HEALTHY, **daemon(status={"shortage": "others"})), "vattd", WARNING, "others", "nvidia-smi"),
    (
        "a drained vattd",
        but(HEALTHY, **daemon(status={"state": "draining"})),
        "vattd",
        NOTE,
        "draining",
        f"--resume --gpu {UUID}",
    ),
    (
        "an old vattd",
        but(HEALTHY, **daemon(status={"version": "0.0.9"})),
        "vattd-version",
        WARNING,
        "0.0.9",
        f"vattd start --replace --detach --gpu {UUID}   # and its other",
    ),
    (
        "a vattd of another wire",
        but(HEALTHY, **daemon(wire_versions=(98, 99))),
        "vattd-version",
        BROKEN,
        "wire versions 98 to 99",
        "pip install --upgrade .  # in vattd's source folder",
    ),
    (
        "a clock set forward",
        but(HEALTHY, **daemon(status={"start_s": SERVING.start_s - 3600})),
        "clock",
        WARNING,
        "set forward by 3,599 s",
        "timedatectl",
    ),
    (
        "a clock set back",
        but(HEALTHY, **daemon(status={"start_s": SERVING.start_s + 3600})),
        "clock",
        WARNING,
        "set back by 3,601 s",
        "vattctl tenants",
    ),
    ("a hidden start", but(HEALTHY, **daemon(process_start_s=0.0)), "clock", NOTE, "hidden from this user", ""),
    (
        "metrics that do not answer",
        but(HEALTHY, **daemon(metrics=[Metrics("http://127.0.0.1:9410/metrics", "timed out")])),
        "metrics",
        WARNING,
        "timed out",
        "curl -v http://127.0.0.1:9410/metrics",
    ),
    (
        "another program at the port of metrics",
        but(HEALTHY, metrics_port_error="Address already in use", daemons=[]),
        "metrics-port",
        WARNING,
        "127.0.0.1:9410 cannot be had (Address already in use)",
        "vattd start --metrics-address 127.0.0.1:0",
    ),
    ("no metrics", but(HEALTHY, **daemon(metrics=[])), "metrics", NOTE, "off", "--metrics-address 127.0.0.1:9410"),
    (
        "no metrics, and another program at their port",
        but(HEALTHY, metrics_port_error="Address already in use", **daemon(metrics=[])),
        "metrics",
        NOTE,
        "off",
        "--metrics-address 127.0.0.1:0",
    ),
    (
        "hidden metrics",
        but(HEALTHY, **daemon(metrics=[], metrics_hidden=True)),
        "metrics",
        NOTE,
        "hidden from this user",
        "sudo",
    ),
    (
        "no torch",
        but(HEALTHY, software={"torch": Distribution("torch", "", "2.9")}),
        "torch",
        NOTE,
        "not installed",
        "",
    ),
    (
        "an old torch",
        but(HEALTHY, software={"torch": Distribution("torch", "2.8.0", "2.9")}),
        "torch",
        WARNING,
        "engines need torch>=2.9",
        "pip install 'torch>=2.9'",
    ),
    (
        "a torch for CPUs beside a GPU",
        but(HEALTHY, software={"torch_cuda": ""}),
        "torch",
        WARNING,
        "built for CPUs",
        "whl/cu130",
    ),
    (
        "a torch that is newer than the driver",
        but(HEALTHY, cuda={"version": 12080}),
        "torch",
        BROKEN,
        "built for CUDA 13.0, and the driver is for 12.x",
        "whl/cu126",
    ),
    (
        "an old transformers",
        but(HEALTHY, software={"transformers": Distribution("transformers", "4.57.1", "5.23", "6")}),
        "transformers",
        WARNING,
        "transformers 4.57.1, and the integration",
        "pip install '.[transformers]'  # in vattd's source folder",
    ),
    ("no vLLM", but(HEALTHY, software={"vllm": Distribution("vllm", "")}), "vllm", NOTE, "not installed", ""),
    ("a misspelt switch", but(HEALTHY, software={"environ": {"VATTD_VLLM": "on"}}), "vllm", BROKEN, "'on'", "=1"),
    (
        "another vLLM",
        but(HEALTHY, software={"vllm": Distribution("vllm", "0.33.0", "0.32", "0.33")}),
        "vllm",
        WARNING,
        "vllm 0.33.0",
        "'.[vllm]'",
    ),
    ("no plugin", but(HEALTHY, software={"vllm_plugins": []}), "vllm", BROKEN, "does not find vattd's", "--force"),
    (
        "a plugin that vLLM is told to leave out",
        but(HEALTHY, software={"environ": {"VATTD_VLLM": "1", "VLLM_PLUGINS": "lora"}}),
        "vllm",
        WARNING,
        "VLLM_PLUGINS is 'lora'",
        "export VLLM_PLUGINS=lora,vattd",
    ),
    ("a plugin that is off", but(HEALTHY, software={"environ": {}}), "vllm", NOTE, "and off", "VATTD_VLLM=1"),
]


@pytest.mark.parametrize(
    ("facts", "name", "state", "what", "fix"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG]
)
def test_what_is_wrong_is_seen_and_said_with_what_to_type(
    facts: Facts, name: str, state: State, what: str, fix: str
) -> None:
    [finding] = [one for one in examine(facts) if one.name == name and one.state is not OK]
    assert finding.state is state
    assert what in finding.what
    assert fix in " | ".join(finding.fixes)
    assert bool(finding.fixes) == bool(fix)


@pytest.mark.parametrize("facts", [HEALTHY, HOST], ids=["a GPU", "host memory"])
def test_where_nothing_is_wrong_nothing_is_said_to_be(facts: Facts) -> None:
    wrong = [one for one in examine(facts) if one.state is not OK]
    assert [one.name for one in wrong] == ([] if facts is HEALTHY else ["driver"])


def checks() -> dict[str, Callable[..., Finding]]:
    modules = [software, kernel, limits, memory, gpu_checks, sockets, engines]
    return {
        f"{module.__name__}.{name}": function
        for module in modules
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_") and function.__module__ == module.__name__
    }


@pytest.mark.parametrize("facts", [row[1] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_it_says_to_type_of_our_own_commands_is_taken(facts: Facts) -> None:
    for finding in examine(facts):
        for fix in finding.fixes:
            command = OURS.search(fix.partition("   # ")[0])
            assert command is None or not refusal(fix[command.start() :])


def test_every_check_is_made_and_is_tripped_by_one_machine_above() -> None:
    source = inspect.getsource(examine_module)
    for name in checks():
        assert ".".join(name.split(".")[-2:]) in source, f"nobody calls {name}"
    made = {one.name for one in examine(HEALTHY)}
    assert made == {row[2] for row in WRONG}


def test_only_what_is_about_this_machine_is_looked_at() -> None:
    names = {one.name for one in examine(but(HOST, daemons=[]))}
    assert not names & {"device-nodes", "nvml", "mps-daemon", "vmm", "mig", "clock", "metrics"}
    refused = examine(but(HEALTHY, **daemon(refusal="no", wire_versions=(0, 0))))
    assert "vattd-version" not in {one.name for one in refused}, "a welcome that refuses says nothing else"


@pytest.mark.parametrize(
    ("state", "fixes"), [(BROKEN, ()), (WARNING, ()), (OK, ("reboot",))], ids=["broken", "warning", "ok"]
)
def test_what_is_wrong_has_something_to_type_and_what_is_right_has_not(state: State, fixes: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="not a finding"):
        Finding("name", state, "words", fixes)


def test_the_usual_port_may_be_a_vattds_own() -> None:
    [finding] = [one for one in examine(but(HEALTHY, metrics_port_error="in use")) if one.name == "metrics-port"]
    assert (finding.state, finding.what) == (OK, "127.0.0.1:9410 is a vattd's")


def test_several_vattds_are_each_looked_at() -> None:
    other = replace(DAEMON, device=OTHER_UUID, status=replace(SERVING, state="draining"))
    found = [one for one in examine(but(HEALTHY, daemons=[DAEMON, other])) if one.name == "vattd"]
    assert [(one.subject, one.state) for one in found] == [
        (f"{UUID} in /run/vattd", OK),
        (f"{OTHER_UUID} in /run/vattd", NOTE),
    ]


def test_hardware_of_any_kind_is_a_sign_of_a_gpu() -> None:
    node = DeviceNode("/dev/nvidia0", True, "crw-rw-rw-", "root")
    for hardware in (Hardware(1, "", [], ""), Hardware(0, "580.1", [], ""), Hardware(0, "", [node], "")):
        assert replace(HOST, hardware=hardware).has_gpu
    assert not HOST.has_gpu


def test_every_check_stands_in_the_documents_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    rows = [
        line.split("|")[1] for line in text.partition("## What is looked at")[2].splitlines() if line.startswith("| ")
    ]
    listed = [name.strip() for row in rows[1:] for name in row.split(",")]
    assert sorted(listed) == sorted({one.name for one in examine(HEALTHY)})
