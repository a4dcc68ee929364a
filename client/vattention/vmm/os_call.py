"""Calls into the kernel as functions that return a value or raise one of our errors, as `cuda_call` is for CUDA."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from vatt.errors import DriverError, OutOfMemory, SystemLimit, VattError
from vattention.vmm import call_watch

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")

# These change the address space, so ENOMEM is about the number or the size of mappings and not about memory.
_MAPPING_CALLS = frozenset({"mmap", "munmap", "madvise"})


def os_call(name: str, function: Callable[_Args, _Result], *args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
    """The function's answer, or its OSError as one of ours; `name` is the system call's."""
    watch = call_watch.current
    if watch is not None:
        function = watch(name, function)
    try:
        return function(*args, **kwargs)
    except OSError as failure:
        raise error_of(name, failure) from failure


def error_of(name: str, failure: OSError) -> VattError:
    """What `os_call` raises for a system call's failure."""
    code = errno.errorcode.get(failure.errno or 0, "")
    if code == "ENOMEM" and name in _MAPPING_CALLS:
        return SystemLimit(
            f"the kernel refused {name}: the process has passed vm.max_map_count (sysctl -w vm.max_map_count=N) "
            "or its address space limit (ulimit -v)"
        )
    if code in ("ENOMEM", "ENOSPC"):
        return OutOfMemory(f"{name}: {code} (the kernel has no memory for another page)", name, code)
    if code in ("EMFILE", "ENFILE"):
        return SystemLimit(f"{name}: {code} (raise RLIMIT_NOFILE: `ulimit -n`, or LimitNOFILE= in the systemd unit)")
    if code == "EFBIG":
        return DriverError(f"{name}: {code} (a slab is a sparse file of many TiB: `ulimit -f unlimited`)", name, code)
    return DriverError(f"{failure}", name, code)
