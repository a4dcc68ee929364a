"""What of an NVIDIA GPU can be seen without its driver's libraries."""

from __future__ import annotations

import grp
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from vattctl.doctor.facts import DeviceNode, Hardware

NVIDIA_VENDOR = "0x10de"
DISPLAY_CLASS = "0x03"  # VGA and 3D controllers, not the sound of a card
DEFAULT_MPS_PIPES = "/tmp/nvidia-mps"


def read_hardware(environ: Mapping[str, str], root: Path = Path("/")) -> Hardware:
    pipes = Path(environ.get("CUDA_MPS_PIPE_DIRECTORY") or root / DEFAULT_MPS_PIPES.lstrip("/"))
    return Hardware(
        pci_gpus=sum(_is_gpu(device) for device in (root / "sys/bus/pci/devices").glob("*")),
        module_version=_module_version(root / "proc/driver/nvidia/version"),
        nodes=[_node(path) for path in sorted((root / "dev").glob("nvidia*")) if not path.is_dir()],
        mps_pipe=str(pipes) if os.path.exists(pipes / "control") else "",
        has_rdma=any((root / "sys/class/infiniband").glob("*")),
    )


def _is_gpu(device: Path) -> bool:
    return _text(device / "vendor") == NVIDIA_VENDOR and _text(device / "class").startswith(DISPLAY_CLASS)


def _module_version(file: Path) -> str:
    """`NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build ...`."""
    match = re.search(r"NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s", _text(file) + " ")
    return match[1] if match else ""


def _node(path: Path) -> DeviceNode:
    facts = path.stat()
    try:
        group = grp.getgrgid(facts.st_gid).gr_name
    except KeyError:
        group = str(facts.st_gid)
    return DeviceNode(str(path), os.access(path, os.R_OK | os.W_OK), stat.filemode(facts.st_mode), group)


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
