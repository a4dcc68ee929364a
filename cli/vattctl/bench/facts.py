"""Where and how figures were measured, in words."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from vatt.sizes import format_size
from vattctl.bench.environment import Environment
from vattctl.bench.gpu import Gpu
from vattctl.bench.report import PoolFacts, Report

UNKNOWN = "unknown"
SIMULATED_WORDS = "this driver is a simulation for tests: the figures say nothing of any GPU"


def facts(report: Report) -> list[list[str]]:
    """What it is about, and the words."""
    return [[name, words] for name, words in _all(report) if words]


def _all(report: Report) -> Iterator[tuple[str, str]]:
    machine = report.environment
    gpu = machine.gpu
    if report.is_simulated:
        yield "SIMULATED", SIMULATED_WORDS
    yield "device", machine.device_name
    yield "memory", f"{format_size(machine.device_total_bytes)}, {format_size(machine.device_free_bytes)} free at first"
    if gpu is not None:
        yield from _gpu_facts(gpu)
    yield "pages", _pages_words(report)
    yield "vattd", machine.vattd_version + (f", commit {machine.vattd_commit}" if machine.vattd_commit else "")
    if report.pool is not None:
        yield "leases from", _pool_words(report.pool)
    yield "machine", _machine_words(machine)
    yield "kernel", _kernel_words(machine)
    yield "python", _python_words(machine)
    over = report.overheads
    stopwatch, least = over.stopwatch_us.median_us, over.least_call_us.median_us
    yield "in each time", f"stopwatch {stopwatch:.2f} us, {over.least_call} {least:.2f} us; not taken off"
    yield "repeated", _repeated_words(report)
    yield "noise", _noise_words(report)
    for part, why in report.left_out.items():
        yield f"no {part.value}", ("failed: " if why.is_failure else "") + why.words


def _gpu_facts(gpu: Gpu) -> Iterator[tuple[str, str]]:
    yield "driver", f"{gpu.driver_version or UNKNOWN}, CUDA {gpu.cuda_version}"
    yield (
        "modes",
        ", ".join(
            f"{name} {_switch(value)}"
            for name, value in (
                ("MIG", gpu.mig),
                ("MPS", gpu.mps),
                ("persistence", gpu.persistence_mode),
                ("ECC", gpu.ecc),
            )
        ),
    )
    clocks = [
        f"{name} {now if now is not None else UNKNOWN} of {most if most is not None else UNKNOWN} MHz"
        for name, now, most in (
            ("SM", gpu.sm_clock_mhz, gpu.sm_clock_max_mhz),
            ("memory", gpu.memory_clock_mhz, gpu.memory_clock_max_mhz),
        )
        if now is not None or most is not None
    ]
    yield "clocks", ", ".join(clocks) or UNKNOWN
    if gpu.power_limit_w is not None:
        yield "power limit", f"{gpu.power_limit_w:.0f} W"
    if gpu.pcie_generation is not None and gpu.pcie_lanes is not None:
        yield "PCIe", f"generation {gpu.pcie_generation}, {gpu.pcie_lanes} lanes"
    if gpu.utilization_percent is not None or gpu.compute_process_count is not None:
        used = "unknown" if gpu.utilization_percent is None else f"{gpu.utilization_percent} % busy"
        others = UNKNOWN if gpu.compute_process_count is None else str(gpu.compute_process_count)
        yield "at first", f"{used}, {others} processes with a context, ours among them"
    took = format_size(gpu.context_bytes) if gpu.context_bytes is not None else UNKNOWN
    yield "context", f"the primary one, current, as an engine has it; it took {took}"


def _switch(value: bool | None) -> str:
    return UNKNOWN if value is None else "on" if value else "off"


def _pages_words(report: Report) -> str:
    plan, gpu = report.plan, report.environment.gpu
    words = f"of {format_size(plan.page_size_bytes)}, {plan.page_budget} at most: {format_size(plan.memory_bytes)}"
    if gpu is not None:
        least, best = format_size(gpu.granularity_bytes), format_size(gpu.recommended_granularity_bytes)
        words += f"; granularity {least}, recommended {best}"
    return words


def _pool_words(pool: PoolFacts) -> str:
    words = "a private vattd" if pool.is_private else "the vattd that runs"
    if pool.vattd_version is None or pool.max_bytes is None or pool.min_bytes is None:
        return f"{words}; its admin socket is not ours to ask"
    others = "" if pool.is_private else f", beside {pool.other_sessions} other sessions"
    return (
        f"{words} {pool.vattd_version}, pool {format_size(pool.min_bytes)} to {format_size(pool.max_bytes)}, "
        f"scrub {pool.scrub}{others}; {pool.created_pages} pages made meanwhile"
    )


def _machine_words(machine: Environment) -> str:
    where = "virtual machine, " if machine.is_virtual_machine else ""
    return (
        f"{machine.cpu_model}, {machine.machine}, {where}{machine.cpu_count} CPUs, "
        f"{format_size(machine.memory_bytes)}, load {machine.load_1m:.1f} at first"
    )


def _kernel_words(machine: Environment) -> str:
    words = machine.kernel
    if machine.max_map_count is not None:
        words += f"; vm.max_map_count {machine.max_map_count}"
    if machine.backend == "host" and machine.shmem_huge_pages is not None:
        words += f"; huge pages of shared memory: {machine.shmem_huge_pages}"
    return words


def _python_words(machine: Environment) -> str:
    packages = ", ".join(f"{name} {version or 'not installed'}" for name, version in machine.packages.items())
    return f"{machine.python}; {packages}; torch's CUDA {machine.torch_cuda or 'none'}"


def _repeated_words(report: Report) -> str:
    """Rounds by part; of pages, for each count of them."""
    words = []
    if report.calls:
        rounds: dict[int, int] = {}
        for line in report.calls:
            if line.call is None and line.phase == "create":
                rounds[line.page_count] = line.round_us.count
        counts = ", ".join(f"{rounds[count]:,}" for count in report.plan.page_counts)
        pages = ", ".join(map(str, report.plan.page_counts))
        words.append(f"{counts} rounds of {pages} pages, timed by phase, and as many by call")
    if report.leases:
        words.append(f"{sum(line.round_us.count for line in report.leases.lines if line.phase == 'lease'):,} leases")
    if report.steps:
        words.append(f"{sum(line.step_us.count for line in report.steps.lines):,} steps")
    return "; ".join(words)


def _noise_words(report: Report) -> str:
    drifts = report.drifts()
    if not drifts:
        return ""
    return (
        f"medians of first and second half differ by {statistics.median(drifts):.1%} in the median line, "
        f"{max(drifts):.0%} in the worst"
    )
