"""The machine that figures come from: all that they may depend on, and nothing that says whose it is."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from json import JSONDecodeError, loads
from pathlib import Path

from vattctl.bench.gpu import Gpu
from vattention.vmm import Device, DeviceMemory

# What the figures go through, by the names that packages are installed under.
PACKAGES = ("torch", "cuda-bindings", "nvidia-ml-py", "numpy", "grpcio")
GIT_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Environment:
    """No host, user, path, process or UUID is in here."""

    vattd_version: str
    vattd_commit: str | None  # None: installed from a package that does not say
    backend: str
    device_name: str
    device_total_bytes: int
    device_free_bytes: int  # as the bench began
    gpu: Gpu | None  # None: host memory
    kernel: str
    machine: str
    cpu_model: str
    cpu_count: int  # that this process may use
    is_virtual_machine: bool
    memory_bytes: int
    load_1m: float  # as the bench began
    python: str
    packages: Mapping[str, str | None]
    torch_cuda: str | None  # that torch was built for
    max_map_count: int | None
    shmem_huge_pages: str | None  # of files in memory; on the host they change what a page costs


def describe(device: Device, memory: DeviceMemory, gpu: Gpu | None, root: Path = Path("/")) -> Environment:
    """`root` stands for / so that tests can feed trees of their own."""
    versions = {name: _version(name) for name in PACKAGES}
    cpus = _lines_of(root / "proc" / "cpuinfo")
    return Environment(
        vattd_version=_version("vattd") or "unknown",
        vattd_commit=_commit(),
        backend=device.backend,
        device_name=device.name,
        device_total_bytes=memory.total_bytes,
        device_free_bytes=memory.free_bytes,
        gpu=gpu,
        kernel=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        cpu_model=cpus.get("model name", "unknown"),
        cpu_count=len(os.sched_getaffinity(0)),
        is_virtual_machine="hypervisor" in cpus.get("flags", "").split(),
        memory_bytes=int(_lines_of(root / "proc" / "meminfo").get("MemTotal", "0 kB").split()[0]) << 10,
        load_1m=os.getloadavg()[0],
        python=platform.python_version(),
        packages=versions,
        torch_cuda=_torch_cuda() if versions["torch"] else None,
        max_map_count=_number(root / "proc" / "sys" / "vm" / "max_map_count"),
        shmem_huge_pages=_chosen(root / "sys" / "kernel" / "mm" / "transparent_hugepage" / "shmem_enabled"),
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _torch_cuda() -> str | None:
    """Without importing torch, which takes seconds."""
    try:
        text = Path(str(metadata.distribution("torch").locate_file("torch/version.py"))).read_text()
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition("=")
        if name.split(":")[0].strip() == "cuda":
            return value.strip(" '\"") if value.strip() != "None" else None
    return None


def _commit() -> str | None:
    """Of a checkout, by git; of what pip installed from a repository, by what pip wrote down."""
    root = Path(__file__).resolve().parents[3]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_WITHIN_S, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()
    try:
        facts = loads(metadata.distribution("vattd").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, JSONDecodeError):
        return None
    commit = facts.get("vcs_info", {}).get("commit_id")
    return commit[:12] if isinstance(commit, str) else None


def _lines_of(file: Path) -> dict[str, str]:
    """`name: value` lines; the first of each name."""
    facts: dict[str, str] = {}
    try:
        text = file.read_text()
    except OSError:
        return facts
    for line in text.splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    return facts


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _chosen(file: Path) -> str | None:
    """The kernel marks what is chosen among the words of such a file: `always [never] advise`."""
    try:
        words = file.read_text().split()
    except OSError:
        return None
    return next((word.strip("[]") for word in words if word.startswith("[")), None)
