"""Facts of a machine on which nothing is wrong, and the same with something changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vatt.protocol import MAX_VERSION, MIN_VERSION
from vattctl.doctor.facts import (
    UNLIMITED,
    Answer,
    Container,
    Cuda,
    CudaGpu,
    Daemon,
    DeviceNode,
    Directory,
    Distribution,
    Facts,
    Hardware,
    Is,
    Kernel,
    Limits,
    Memory,
    Metrics,
    Nvml,
    NvmlGpu,
    Software,
    Status,
)

GIB = 1 << 30
UUID = "GPU-00000000-0000-0000-0000-000000000001"
OTHER_UUID = "GPU-00000000-0000-0000-0000-000000000002"
PLACE = Path("/run/vattd")
NOW_S = 1_800_000_000.0

GPU = CudaGpu(0, UUID, "A100", has_vmm=True, exports_fds=True, uses_mps=Is.NO, compute_mode=0)
NVML_GPU = NvmlGpu(UUID, "A100", 80 * GIB, 79 * GIB)
SERVING = Status(
    version="0.1.0",
    state="serving",
    start_s=NOW_S - 99,
    backend="cuda",
    page_size_bytes=2 << 20,
    max_bytes=72 * GIB,
    pages_bytes=0,
    session_count=2,
    shortage="",
)
DAEMON = Daemon(
    UUID,
    PLACE,
    pid=4242,
    wire_versions=(MIN_VERSION, MAX_VERSION),
    status=SERVING,
    process_start_s=NOW_S - 100,
    nofile=65536,
    metrics=[Metrics("http://127.0.0.1:9410/metrics", "")],
)
HEALTHY = Facts(
    now_s=NOW_S,
    software=Software(
        python=(3, 11, 7),
        version="0.1.0",
        needed=[Distribution("grpcio", "1.85.1", "1.85.1")],
        torch=Distribution("torch", "2.13.0", "2.9"),
        torch_cuda="13.0",
        transformers=Distribution("transformers", "5.23.0", "5.23", "6"),
        vllm=Distribution("vllm", "0.32.1", "0.32", "0.33"),
        vllm_plugins=["vattd"],
        environ={"VATTD_VLLM": "1"},
    ),
    hardware=Hardware(
        pci_gpus=1,
        module_version="580.65.06",
        nodes=[
            DeviceNode(f"/dev/{name}", True, "crw-rw-rw-", "root") for name in ("nvidia0", "nvidiactl", "nvidia-uvm")
        ],
        mps_pipe="",
    ),
    cuda=Cuda(Answer.GIVEN, version=13000, gpus=[GPU]),
    nvml=Nvml(Answer.GIVEN, driver_version="580.65.06", gpus=[NVML_GPU]),
    kernel=Kernel(
        "6.18.0", has_peer_pidfd=True, refuses_descriptors=True, pidfd_error="", memfd_error="", hides_processes=False
    ),
    container=Container("", own_pids=False, own_users=False),
    limits=Limits(
        nofile_soft=65536,
        nofile_hard=65536,
        memlock_bytes=8 << 20,
        address_space_bytes=UNLIMITED,
        file_bytes=UNLIMITED,
        max_map_count=65530,
        overcommit_mode=0,
        commit_left_bytes=GIB,
    ),
    memory=Memory(
        machine_bytes=64 * GIB,
        total_bytes=64 * GIB,
        available_bytes=60 * GIB,
        headroom_bytes=GIB,
        limit="MemAvailable of /proc/meminfo",
        swap_bytes=0,
        swap_used_bytes=0,
        huge_pages=0,
        huge_pages_free=0,
        shm_bytes=32 * GIB,
    ),
    directories=[Directory(PLACE, is_chosen=False, exists=True)],
    daemons=[DAEMON],
)
# The same machine without any GPU, and with a vattd of host memory.
HOST_DAEMON = replace(
    DAEMON, device="host", status=replace(SERVING, backend="host", page_size_bytes=1 << 18, max_bytes=32 * GIB)
)
HOST = replace(
    HEALTHY,
    hardware=Hardware(0, "", [], ""),
    cuda=Cuda(Answer.NO_LIBRARY, "cuInit: libcuda.so.1 was not found"),
    nvml=Nvml(Answer.NO_LIBRARY, "NVML Shared Library Not Found"),
    daemons=[HOST_DAEMON],
    software=replace(HEALTHY.software, torch=Distribution("torch", "2.13.0+cpu", "2.9"), torch_cuda=""),
)


def but(facts: Facts, **parts: Any) -> Facts:
    """`but(HEALTHY, kernel={"pidfd_error": "EPERM"}, daemons=[])`: parts of a fact by name, or a fact as a whole."""
    return replace(
        facts,
        **{
            name: replace(getattr(facts, name), **part) if isinstance(part, dict) else part
            for name, part in parts.items()
        },
    )


def gpu(**parts: Any) -> dict[str, Any]:
    """`but(HEALTHY, **gpu(has_vmm=False))`."""
    return {"cuda": {"gpus": [replace(GPU, **parts)]}}


def nvml_gpu(**parts: Any) -> dict[str, Any]:
    return {"nvml": {"gpus": [replace(NVML_GPU, **parts)]}}


def daemon(**parts: Any) -> dict[str, Any]:
    status = parts.pop("status", {})
    own = replace(SERVING, **status) if status is not None else None
    return {"daemons": [replace(DAEMON, status=own, **parts)]}
