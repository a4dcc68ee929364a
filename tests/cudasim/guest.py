"""What programs under test start from: `from guest import *` in a subprocess that lives in a World.

Everything here calls the real cuda.bindings, so it is only imported where libcuda.so.1 is the simulated one.
"""

import array
import os
import socket
import sys
from typing import Any

from cuda.bindings import driver as cu

PAGE = 2 << 20
FD = cu.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
FABRIC = cu.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_FABRIC
NONE = cu.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_NONE
READ = cu.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READ
READWRITE = cu.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
DEVICE = cu.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
HOST = cu.CUmemLocationType.CU_MEM_LOCATION_TYPE_HOST
MINIMUM = cu.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM


def ok(answer: tuple[Any, ...]) -> Any:
    """The value of a call that must succeed."""
    if answer[0] != cu.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{answer[0]!r}")
    return answer[1] if len(answer) == 2 else answer[1:]


def code(answer: tuple[Any, ...]) -> int:
    """The result of a call as a number."""
    return int(answer[0])


def prop(handle_types: Any = FD, device: int = 0, location: Any = DEVICE) -> Any:
    p = cu.CUmemAllocationProp()
    p.type = cu.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    p.location.type = location
    p.location.id = device
    p.requestedHandleTypes = handle_types
    return p


def access(flags: Any = READWRITE, device: int = 0, location: Any = DEVICE) -> Any:
    desc = cu.CUmemAccessDesc()
    desc.location.type = location
    desc.location.id = device
    desc.flags = flags
    return desc


def create(size: int = PAGE, device: int = 0) -> int:
    return int(ok(cu.cuMemCreate(size, prop(device=device), 0)))


def reserve(size: int) -> int:
    return int(ok(cu.cuMemAddressReserve(size, 0, 0, 0)))


def attach(address: int, handle: int, size: int = PAGE, flags: Any = READWRITE) -> int:
    """Map a handle and make it accessible; returns the address."""
    ok(cu.cuMemMap(address, size, 0, handle, 0))
    ok(cu.cuMemSetAccess(address, size, [access(flags)], 1))
    return address


def export(handle: int) -> int:
    return int(ok(cu.cuMemExportToShareableHandle(handle, FD, 0)))


def enter_context(device: int = 0) -> None:
    ok(cu.cuCtxSetCurrent(ok(cu.cuDevicePrimaryCtxRetain(device))))


def send_fd(to: socket.socket, fd: int) -> None:
    socket.send_fds(to, [b"p"], [fd])


def receive_fd(source: socket.socket) -> int:
    _, ancillary, _, _ = source.recvmsg(1, socket.CMSG_SPACE(array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    fds.frombytes(ancillary[0][2])
    return fds[0]


def say(text: object) -> None:
    """One line to the test."""
    print(text, flush=True)


def hear() -> str:
    """Wait for a line from the test."""
    return sys.stdin.readline().rstrip("\n")


def inherited_socket() -> socket.socket:
    """The socket that the test passed on (see `spawn`)."""
    return socket.socket(fileno=int(os.environ["GUEST_SOCKET"]))
