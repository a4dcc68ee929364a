"""A GPU's facts, as far as the driver and NVML tell them, and the context that an engine has on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from vatt.errors import DriverError
from vattention.vmm import Device
from vattention.vmm.cuda_call import bindings, call, call_at_close
from vattention.vmm.cuda_device import allocation_prop, granularity_bytes
from vattention.vmm.nvml import NvmlMemory

# NVML's numbers for what is asked: clocks of the SMs and of the memory.
_CLOCKS = {"sm": 1, "memory": 2}


@dataclass(frozen=True, slots=True)
class Gpu:
    """None: nobody told."""

    driver_version: str | None
    cuda_version: str  # that the driver speaks, whatever else is installed
    granularity_bytes: int
    recommended_granularity_bytes: int
    is_simulated: bool
    mig: bool | None
    mps: bool
    persistence_mode: bool | None
    ecc: bool | None
    sm_clock_mhz: int | None
    sm_clock_max_mhz: int | None
    memory_clock_mhz: int | None
    memory_clock_max_mhz: int | None
    power_limit_w: float | None
    pcie_generation: int | None
    pcie_lanes: int | None
    utilization_percent: int | None  # as the bench began
    compute_process_count: int | None  # likewise, ours not counted
    context_bytes: int | None  # what the bench's own context took, as the device's free memory showed it


def describe(device: Device, context_bytes: int | None) -> Gpu:
    """Raises DriverError where CUDA itself does not answer; what NVML does not say is None."""
    nvml = _nvml(device)
    ask = nvml.ask if nvml is not None else lambda name, *args: None
    try:
        mig, ecc = ask("nvmlDeviceGetMigMode"), ask("nvmlDeviceGetEccMode")
        persistence, power_mw = ask("nvmlDeviceGetPersistenceMode"), ask("nvmlDeviceGetEnforcedPowerLimit")
        rates = ask("nvmlDeviceGetUtilizationRates")
        processes = ask("nvmlDeviceGetComputeRunningProcesses")
        clocks = {name: ask("nvmlDeviceGetClockInfo", number) for name, number in _CLOCKS.items()}
        most = {name: ask("nvmlDeviceGetMaxClockInfo", number) for name, number in _CLOCKS.items()}
        flags = bindings().CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
        return Gpu(
            driver_version=nvml.driver_version() if nvml is not None else None,
            cuda_version=_cuda_version(int(call("cuDriverGetVersion"))),
            granularity_bytes=granularity_bytes(device),
            recommended_granularity_bytes=int(call("cuMemGetAllocationGranularity", allocation_prop(device), flags)),
            is_simulated="Simulated" in device.name,  # tests/cudasim says so there, and no product is called so
            mig=None if mig is None else bool(mig[0]),
            mps=device.uses_mps,
            persistence_mode=None if persistence is None else bool(persistence),
            ecc=None if ecc is None else bool(ecc[0]),
            sm_clock_mhz=clocks["sm"],
            sm_clock_max_mhz=most["sm"],
            memory_clock_mhz=clocks["memory"],
            memory_clock_max_mhz=most["memory"],
            power_limit_w=None if power_mw is None else power_mw / 1000,
            pcie_generation=ask("nvmlDeviceGetCurrPcieLinkGeneration"),
            pcie_lanes=ask("nvmlDeviceGetCurrPcieLinkWidth"),
            utilization_percent=None if rates is None else int(rates.gpu),
            compute_process_count=None if processes is None else len(processes),
            context_bytes=context_bytes,
        )
    finally:
        if nvml is not None:
            nvml.close()


@contextmanager
def engine_context(device: Device) -> Iterator[int | None]:
    """The device's primary context, current in this thread: an engine that maps pages has it, torch's is the same one.
    Says what it took, as far as the device's free memory shows it, which other programs change too."""
    with ExitStack() as undo:
        before_bytes = _free_bytes(device)
        context = call("cuDevicePrimaryCtxRetain", device.ordinal)
        undo.callback(call_at_close, "cuDevicePrimaryCtxRelease", device.ordinal)
        current = call("cuCtxGetCurrent")
        call("cuCtxSetCurrent", context)
        undo.callback(call_at_close, "cuCtxSetCurrent", current)
        after_bytes = _free_bytes(device)
        known = before_bytes is not None and after_bytes is not None and after_bytes < before_bytes
        yield before_bytes - after_bytes if known else None  # type: ignore[operator]


def _free_bytes(device: Device) -> int | None:
    nvml = _nvml(device)
    if nvml is None:
        return None
    try:
        return nvml.read()[1]
    except DriverError:
        return None
    finally:
        nvml.close()


def _nvml(device: Device) -> NvmlMemory | None:
    try:
        return NvmlMemory(device.uuid)
    except DriverError:
        return None


def _cuda_version(number: int) -> str:
    """`13.0` of 13000."""
    return f"{number // 1000}.{number % 1000 // 10}"
