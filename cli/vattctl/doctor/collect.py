"""All facts, once."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vatt.sockets import SOCKET_DIR_VARIABLE, search_dirs
from vattctl.doctor.facts import Cuda, CudaGpu, Facts, GpuProcess, Is, Nvml, NvmlGpu
from vattctl.doctor.probes.child import WITHIN_S, Child
from vattctl.doctor.probes.daemons import read_daemons, read_directories, read_other_places
from vattctl.doctor.probes.hardware import read_hardware
from vattctl.doctor.probes.metrics import usual_port_error
from vattctl.doctor.probes.software import read_software
from vattctl.doctor.probes.system import read_container, read_kernel, read_limits, read_memory

DRIVER_PROBE = "vattctl.doctor.probes.driver"


def collect(environ: Mapping[str, str], socket_dir: Path | None, driver_within_s: float = WITHIN_S) -> Facts:
    """The drivers are asked meanwhile, in processes of their own."""
    cuda, nvml = (Child(DRIVER_PROBE, what, driver_within_s) for what in ("cuda", "nvml"))
    is_chosen = socket_dir is not None or bool(environ.get(SOCKET_DIR_VARIABLE))
    paths = [socket_dir.absolute()] if socket_dir is not None else search_dirs(environ)
    directories = read_directories(paths, is_chosen, os.stat("/").st_dev)
    return Facts(
        now_s=time.time(),
        software=read_software(environ),
        hardware=read_hardware(environ),
        kernel=read_kernel(),
        container=read_container(environ),
        limits=read_limits(),
        memory=read_memory(),
        directories=directories,
        other_places=read_other_places(directories),
        daemons=read_daemons(directories),
        metrics_port_error=usual_port_error(),
        cuda=_cuda(cuda),
        nvml=_nvml(nvml),
    )


def _cuda(child: Child) -> Cuda:
    answer, said = child.wait()
    gpus = [CudaGpu(**{**gpu, "uses_mps": Is(gpu["uses_mps"])}) for gpu in said.pop("gpus", [])]
    return Cuda(answer, gpus=gpus, **said)


def _nvml(child: Child) -> Nvml:
    answer, said = child.wait()
    return Nvml(answer, gpus=[_nvml_gpu(gpu) for gpu in said.pop("gpus", [])], **said)


def _nvml_gpu(said: dict[str, Any]) -> NvmlGpu:
    return NvmlGpu(**{**said, "processes": [GpuProcess(**one) for one in said["processes"]]})
