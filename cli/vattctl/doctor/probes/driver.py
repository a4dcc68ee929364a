"""`python -m vattctl.doctor.probes.driver cuda|nvml`: what a driver's library says, as one line of JSON.

cuInit and attributes, and no context: it would cost hundreds of MB of a GPU that may be full.
"""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path
from typing import Any

from vatt.errors import DeviceNotFound, DriverError
from vattctl.doctor.facts import Answer, Is
from vattention.vmm.cuda_call import bindings, call


def cuda() -> dict[str, Any]:
    try:
        call("cuInit", 0)
        gpus = [_cuda_gpu(ordinal) for ordinal in range(call("cuDeviceGetCount"))]
        return {"answer": Answer.GIVEN.value, "version": call("cuDriverGetVersion"), "gpus": gpus}
    except DeviceNotFound as error:
        # Without a library there was a failure that this one came from; else the library said so itself.
        answer = Answer.REFUSED if error.__cause__ is None else Answer.NO_LIBRARY
        return {"answer": answer.value, "error": str(error).partition("; ")[0]}
    except DriverError as error:
        return {"answer": Answer.REFUSED.value, "error": str(error).partition("; ")[0]}


def _cuda_gpu(ordinal: int) -> dict[str, Any]:
    return {
        "ordinal": ordinal,
        "uuid": f"GPU-{uuid.UUID(bytes=bytes(call('cuDeviceGetUuid', ordinal).bytes))}",
        "name": call("cuDeviceGetName", 256, ordinal).split(b"\0")[0].decode(errors="replace"),
        "has_vmm": _attribute("VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED", ordinal) is Is.YES,
        "exports_fds": _attribute("HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED", ordinal) is Is.YES,
        "uses_mps": _attribute("MPS_ENABLED", ordinal).value,
        "compute_mode": call("cuDeviceGetAttribute", _named("COMPUTE_MODE"), ordinal),
    }


def _attribute(name: str, ordinal: int) -> Is:
    """A driver that is older than the attribute calls it an invalid value."""
    try:
        return Is.YES if call("cuDeviceGetAttribute", _named(name), ordinal) else Is.NO
    except DriverError as error:
        if error.code != "CUDA_ERROR_INVALID_VALUE":
            raise
        return Is.UNKNOWN


def _named(name: str) -> Any:
    return getattr(bindings().CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")


def nvml() -> dict[str, Any]:
    try:
        import pynvml
    except ImportError as error:
        return {"answer": Answer.NO_LIBRARY.value, "error": f"pip install nvidia-ml-py ({error})"}
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        return {
            "answer": Answer.GIVEN.value,
            "driver_version": pynvml.nvmlSystemGetDriverVersion(),
            "gpus": [_nvml_gpu(pynvml, handle) for handle in handles],
        }
    except pynvml.NVMLError as error:
        missing = isinstance(error, pynvml.NVMLError_LibraryNotFound)
        return {"answer": (Answer.NO_LIBRARY if missing else Answer.REFUSED).value, "error": str(error)}


def _nvml_gpu(pynvml: Any, handle: Any) -> dict[str, Any]:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    has_mig = _asked(pynvml, pynvml.nvmlDeviceGetMigMode, handle, or_else=[0, 0])[0] != 0
    processes = _asked(pynvml, pynvml.nvmlDeviceGetComputeRunningProcesses, handle, or_else=[])
    return {
        "uuid": pynvml.nvmlDeviceGetUUID(handle),
        "name": pynvml.nvmlDeviceGetName(handle),
        "total_bytes": int(memory.total),
        "free_bytes": int(memory.free),
        "has_mig": has_mig,
        "mig_uuids": _mig_uuids(pynvml, handle) if has_mig else [],
        "processes": [{"pid": int(one.pid), "name": _name_of(int(one.pid))} for one in processes],
    }


def _mig_uuids(pynvml: Any, handle: Any) -> list[str]:
    uuids = []
    for index in range(_asked(pynvml, pynvml.nvmlDeviceGetMaxMigDeviceCount, handle, or_else=0)):
        device = _asked(pynvml, pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index, or_else=None)
        if device is not None:
            uuids.append(pynvml.nvmlDeviceGetUUID(device))
    return uuids


def _asked(pynvml: Any, function: Any, *arguments: Any, or_else: Any) -> Any:
    """Not every GPU and driver can say everything."""
    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return or_else


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:  # it has ended, or is hidden
        return ""


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"cuda": cuda, "nvml": nvml}[sys.argv[1]]()) + "\n")
