"""The memory calls that Python lacks: thin over libc, sizes and addresses as ints, failures as OSError.

`mmap.mmap` cannot place a mapping at a chosen address, and nothing in the standard library punches holes. Every
argument type is spelled out: ctypes would pass a Python int as a C int and cut a 64-bit address in half. For 64-bit
systems only: there off_t is 64 bits wide.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any

PROT_NONE = 0x0
PROT_READ = 0x1
PROT_WRITE = 0x2

MAP_SHARED = 0x01
MAP_PRIVATE = 0x02
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_NORESERVE = 0x4000

MADV_DONTFORK = 10

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02

_MAP_FAILED = ctypes.c_void_p(-1).value

# use_errno keeps errno per thread from the call's return until it is read; the GIL is released during the call.
_libc = ctypes.CDLL(None, use_errno=True)


def _declare(name: str, restype: Any, *argtypes: Any) -> Any:
    function = getattr(_libc, name)
    function.restype, function.argtypes = restype, argtypes
    return function


_mmap = _declare(
    "mmap",
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_munmap = _declare("munmap", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_mprotect = _declare("mprotect", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_madvise = _declare("madvise", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_fallocate = _declare("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

_memset = _declare("memset", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)


def _check(result: int, call: str) -> None:
    if result != 0:
        raise _last_error(call)


def _last_error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")


def mmap(address: int, size_bytes: int, protection: int, flags: int, fd: int = -1, offset_bytes: int = 0) -> int:
    mapped = _mmap(address, size_bytes, protection, flags, fd, offset_bytes)
    if mapped == _MAP_FAILED:
        raise _last_error("mmap")
    return int(mapped)


def munmap(address: int, size_bytes: int) -> None:
    _check(_munmap(address, size_bytes), "munmap")


def mprotect(address: int, size_bytes: int, protection: int) -> None:
    _check(_mprotect(address, size_bytes, protection), "mprotect")


def madvise(address: int, size_bytes: int, advice: int) -> None:
    _check(_madvise(address, size_bytes, advice), "madvise")


def fallocate(fd: int, mode: int, offset_bytes: int, size_bytes: int) -> None:
    """Repeats what a signal interrupted, as the standard library does (PEP 475): the kernel then kept nothing, or, of
    huge pages, what the repetition finds done."""
    while _fallocate(fd, mode, offset_bytes, size_bytes) != 0:
        if ctypes.get_errno() != errno.EINTR:
            raise _last_error("fallocate")


def punch(fd: int, offset_bytes: int, size_bytes: int) -> None:
    """Give the memory behind a range of a file back; who maps it sees zeros from then on."""
    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset_bytes, size_bytes)


def fill_with_zeros(address: int, size_bytes: int) -> None:
    _memset(address, 0, size_bytes)
