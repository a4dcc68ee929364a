"""What a CUresult means for the caller: which of our errors it becomes, and what to do about it."""

from __future__ import annotations

from vatt.errors import DeviceLost, DeviceNotFound, DriverError, OutOfMemory, VattError

DEINITIALIZED = "CUDA_ERROR_DEINITIALIZED"

# "This leaves the process in an inconsistent state and any further CUDA work will return the same error" is what the
# driver's documentation says of these, but for the uncorrectable ECC and NVLink ones and UNKNOWN: after those, what
# the memory holds cannot be trusted, which for an owner of memory comes to the same.
_STICKY = frozenset(
    f"CUDA_ERROR_{name}"
    for name in (
        "ECC_UNCORRECTABLE",
        "NVLINK_UNCORRECTABLE",
        "CONTAINED",
        "ILLEGAL_ADDRESS",
        "LAUNCH_TIMEOUT",
        "ASSERT",
        "HARDWARE_STACK_ERROR",
        "ILLEGAL_INSTRUCTION",
        "MISALIGNED_ADDRESS",
        "INVALID_ADDRESS_SPACE",
        "INVALID_PC",
        "LAUNCH_FAILED",
        "TENSOR_MEMORY_LEAK",
        "MPS_CLIENT_TERMINATED",
        "EXTERNAL_DEVICE",
        "UNKNOWN",
    )
)

_NO_DEVICE = frozenset(f"CUDA_ERROR_{name}" for name in ("NO_DEVICE", "INVALID_DEVICE", "STUB_LIBRARY"))

_ADVICE = {
    "CUDA_ERROR_OUT_OF_MEMORY": "the device has no memory left: free pages, or look for other users in nvidia-smi",
    "CUDA_ERROR_NO_DEVICE": "no GPU is visible: check nvidia-smi and CUDA_VISIBLE_DEVICES",
    "CUDA_ERROR_STUB_LIBRARY": "the libcuda found is the toolkit's stub: install the NVIDIA driver",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "kernel module and libcuda differ in version: reboot, or reload the module",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "another process has the GPU for itself: see nvidia-smi -q -d COMPUTE",
    "CUDA_ERROR_NOT_PERMITTED": "the driver does not allow it to this process: check device files and cgroup rules",
    "CUDA_ERROR_INVALID_HANDLE": "this is a bug of ours, or the page came from another device: please report it",
    "CUDA_ERROR_INVALID_VALUE": "this is a bug of ours, or the page came from another device: please report it",
    "CUDA_ERROR_UNKNOWN": "often a suspended machine or a lost GPU: look for Xid lines in dmesg",
}

HOST_INSTEAD = "for host memory, `vattd start --gpu host`"


def error_of(call: str, code: str) -> VattError:
    """The error for a call that answered `code`, the name of a CUresult other than CUDA_SUCCESS."""
    advice = _ADVICE.get(code)
    message = f"{call}: {code}" + (f" ({advice})" if advice else "")
    if code in _NO_DEVICE:
        return DeviceNotFound(f"{message}; {HOST_INSTEAD}")
    if code == "CUDA_ERROR_OUT_OF_MEMORY":
        return OutOfMemory(message, call, code)
    if code in _STICKY:
        return DeviceLost(f"{message}; this process can use the device no more: restart it", call, code)
    return DriverError(message, call, code)
