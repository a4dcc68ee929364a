"""Device memory by NVML: the one way to ask for it without a CUDA context."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from vatt.errors import DriverError
from vattention.vmm.cuda_device import UUID_PREFIXES


class NvmlMemory:
    """The memory of one GPU, found by UUID: NVML's indexes ignore CUDA_VISIBLE_DEVICES."""

    def __init__(self, uuid: str) -> None:
        try:
            import pynvml
        except ImportError as missing:
            raise DriverError(f"NVML is needed for a GPU's memory: pip install nvidia-ml-py ({missing})") from missing
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as failure:
            raise self._error_of("nvmlInit", failure) from failure
        try:
            self._handle = self._find(uuid)
        except DriverError:
            self.close()
            raise

    def read(self) -> tuple[int, int]:
        """(total_bytes, free_bytes) of the device, whoever uses the rest."""
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        except self._nvml.NVMLError as failure:
            raise self._error_of("nvmlDeviceGetMemoryInfo", failure) from failure
        return int(memory.total), int(memory.free)

    def ask(self, name: str, *args: object) -> Any:
        """What an NVML function says of the device; None where this NVML, or this device, does not say it."""
        try:
            return getattr(self._nvml, name)(self._handle, *args)
        except (self._nvml.NVMLError, self._nvml.NVMLLibraryMismatchError):  # the latter: an older library's
            return None

    def driver_version(self) -> str | None:
        try:
            return str(self._nvml.nvmlSystemGetDriverVersion())
        except self._nvml.NVMLError:
            return None

    def close(self) -> None:
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def _find(self, uuid: str) -> Any:
        # CUDA does not say whether a UUID is a MIG slice's, NVML wants the right prefix: try both.
        for prefix in UUID_PREFIXES:
            try:
                return self._nvml.nvmlDeviceGetHandleByUUID(prefix + uuid[4:])
            except self._nvml.NVMLError_NotFound:
                continue
            except self._nvml.NVMLError as failure:
                raise self._error_of("nvmlDeviceGetHandleByUUID", failure) from failure
        raise DriverError(f"NVML knows no GPU {uuid}", "nvmlDeviceGetHandleByUUID")

    @staticmethod
    def _error_of(call: str, failure: Exception) -> DriverError:
        return DriverError(f"{call}: {failure}: is the NVIDIA driver (libnvidia-ml.so.1) whole?", call)
