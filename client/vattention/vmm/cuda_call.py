"""The one way into libcuda: driver calls as functions that return a value or raise.

cuda.bindings is imported at the first call, and that call loads libcuda: a machine without either can import this.
"""

from __future__ import annotations

import functools
from typing import Any

from vatt.errors import DeviceLost, DeviceNotFound, DriverError
from vattention.vmm import call_watch
from vattention.vmm.cuda_errors import DEINITIALIZED, HOST_INSTEAD, error_of


@functools.cache
def bindings() -> Any:
    """cuda.bindings.driver: its enums and structs, and the functions for `call`."""
    try:
        import cuda.bindings.driver
    except ImportError as missing:
        raise DeviceNotFound(f"cuda-bindings cannot be imported: {missing}; {HOST_INSTEAD}") from missing
    return cuda.bindings.driver


def call(name: str, *args: object) -> Any:
    """Call a driver function. Its value if it has one, else None; anything but CUDA_SUCCESS is raised."""
    function = getattr(bindings(), name)
    watch = call_watch.current
    if watch is not None:
        function = watch(name, function)
    try:
        result, *values = function(*args)
    except RuntimeError as failure:
        # cuda.bindings raises these itself, at the first call and where the driver has no such function.
        if _is_missing_library(failure):
            raise DeviceNotFound(f"no NVIDIA driver: libcuda.so.1 was not found; {HOST_INSTEAD}") from failure
        raise DriverError(f"{name}: {failure}: update the NVIDIA driver", name) from failure
    if result.value != 0:
        raise error_of(name, result.name)
    return values[0] if values else None


def call_at_close(name: str, *args: object) -> None:
    """As `call`, for closing down. A driver that is shutting down has freed everything itself, and a lost device's
    memory comes back when this process exits: neither leaves anything to do."""
    try:
        call(name, *args)
    except DeviceLost:
        return
    except DriverError as failure:
        if failure.code != DEINITIALIZED:
            raise


def _is_missing_library(failure: RuntimeError) -> bool:
    from cuda.pathfinder import DynamicLibNotFoundError

    return isinstance(failure, DynamicLibNotFoundError)
