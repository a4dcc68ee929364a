"""Simulated kernels, for programs that live in a World: they use memory for a while and die if it is not left to them.

The calling thread needs a current context, as for a real launch.
"""

import ctypes
from dataclasses import dataclass
from typing import ClassVar

_READ, _READWRITE = 1, 3  # CU_MEM_ACCESS_FLAGS_PROT_*


@dataclass(frozen=True, slots=True)
class Reads:
    """A kernel reads these bytes: they must be the same when it ends as when it started."""

    address: int
    size_bytes: int
    access: ClassVar[int] = _READ
    byte: ClassVar[int] = 0


@dataclass(frozen=True, slots=True)
class Writes:
    """A kernel fills these bytes when it starts: they must still be so when it ends."""

    address: int
    size_bytes: int
    byte: int = 0x5A
    access: ClassVar[int] = _READWRITE


class _Range(ctypes.Structure):
    _fields_ = (
        ("start", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("access", ctypes.c_uint32),
        ("byte", ctypes.c_uint32),
    )


def launch(stream: int, *ranges: Reads | Writes, duration_s: float = 0.0) -> None:
    """Queue a kernel in a stream (0: the NULL stream) that runs for so long. Returns at once, as a launch does.

    Raises RuntimeError with the driver's code where the launch is refused; what is not mapped is found when the kernel
    starts, and ends all work in the process with code 700.
    """
    code = try_launch(stream, *ranges, duration_s=duration_s)
    if code != 0:
        raise RuntimeError(f"cudasim_launch: {code}")


def try_launch(stream: int, *ranges: Reads | Writes, duration_s: float = 0.0) -> int:
    """As `launch`; returns the driver's code."""
    array = (_Range * len(ranges))(*(_Range(r.address, r.size_bytes, r.access, r.byte) for r in ranges))
    libcuda = ctypes.CDLL("libcuda.so.1")
    arguments = (ctypes.c_void_p(stream), array, ctypes.c_size_t(len(ranges)), ctypes.c_uint64(round(duration_s * 1e9)))
    return int(libcuda.cudasim_launch(*arguments))
