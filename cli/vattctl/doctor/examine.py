"""Which checks there are, and of what."""

from __future__ import annotations

from collections.abc import Iterator

from vattctl.doctor.checks import engines, gpu, kernel, limits, memory, sockets, software
from vattctl.doctor.facts import Facts
from vattctl.doctor.finding import Finding

OF_THE_MACHINE = (
    software.python,
    software.packages,
    software.environment,
    kernel.sessions,
    kernel.descriptors,
    kernel.processes,
    kernel.memfd,
    kernel.container,
    limits.open_files,
    limits.locked_memory,
    limits.address_space,
    limits.file_size,
    limits.mappings,
    limits.overcommit,
    memory.host_memory,
    memory.huge_pages,
    memory.swap,
    memory.shared_memory,
)
# Where there is something of a GPU.
OF_GPUS = (gpu.device_nodes, gpu.nvml, gpu.mps_daemon)
OF_EACH_CUDA_GPU = (gpu.vmm, gpu.fd_export, gpu.mps, gpu.compute_mode)
OF_EACH_NVML_GPU = (gpu.mig, gpu.gpu_memory)
OF_ENGINES = (engines.torch, engines.transformers, engines.vllm)
OF_EACH_DAEMON = (sockets.version, sockets.clock, sockets.metrics, limits.vattd_open_files)


def examine(facts: Facts) -> list[Finding]:
    return [*(check(facts) for check in OF_THE_MACHINE), *_of_gpus(facts), *_of_vattd(facts), *_of_engines(facts)]


def _of_gpus(facts: Facts) -> Iterator[Finding]:
    yield gpu.driver(facts)
    if facts.has_gpu:
        yield from (check(facts) for check in OF_GPUS)
    for check in OF_EACH_CUDA_GPU:
        yield from (check(facts, one) for one in facts.cuda.gpus)
    for look in OF_EACH_NVML_GPU:
        yield from (look(facts, one) for one in facts.nvml.gpus)


def _of_vattd(facts: Facts) -> Iterator[Finding]:
    yield from (sockets.directory(facts, one) for one in facts.directories)
    yield sockets.elsewhere(facts)
    yield sockets.metrics_port(facts)
    if not facts.daemons:
        yield sockets.no_vattd(facts)
    for daemon in facts.daemons:
        yield sockets.answers(facts, daemon)
        if daemon.is_heard:
            yield from (check(facts, daemon) for check in OF_EACH_DAEMON)


def _of_engines(facts: Facts) -> Iterator[Finding]:
    yield from (check(facts) for check in OF_ENGINES)
