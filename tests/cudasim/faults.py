"""Driver calls that fail or stall because a test wants them to, and what a process holds of the simulated driver.

`World.faults` is for the test that made the world. `Faults.here()` is for a program that lives in one, which may order
faults for itself or for any other process of it.
"""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass
from pathlib import Path

# CUresults by the end of their names.
CODES = {
    "INVALID_VALUE": 1,
    "OUT_OF_MEMORY": 2,
    "DEINITIALIZED": 4,
    "ECC_UNCORRECTABLE": 214,
    "ILLEGAL_ADDRESS": 700,
    "LAUNCH_FAILED": 719,
    "NOT_PERMITTED": 800,
    "NOT_SUPPORTED": 801,
    "UNKNOWN": 999,
}
# After these, all further work of the process fails with the same code.
STICKY = frozenset({"ECC_UNCORRECTABLE", "ILLEGAL_ADDRESS", "LAUNCH_FAILED"})

FOR_EVER = (1 << 64) - 1  # of `times`
_UNTIL_RELEASED = (1 << 64) - 1  # of a stall's nanoseconds
_ANY_CALL = -1
_WAIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Holdings:
    """What one process holds: a handle is there while it has references or is mapped."""

    handles: int
    references: int
    mappings: int
    reservations: int
    reserved_bytes: int


class Faults:
    """Orders for the driver of one world. Each counts the calls that it is about from when it was given.

    A call that fails has done nothing. Without a name, an order is about every call that needs cuInit; without a pid,
    about those of all processes.
    """

    def __init__(self, library: ctypes.CDLL, world: int, call_names: list[str]) -> None:
        library.cudasim_add_fault.argtypes = [
            ctypes.c_void_p,
            *[ctypes.c_int] * 2,
            *[ctypes.c_uint64] * 2,
            *[ctypes.c_int] * 2,
            ctypes.c_uint64,
        ]
        for function in (library.cudasim_clear_faults, library.cudasim_stalled, library.cudasim_release_stalled):
            function.argtypes = [ctypes.c_void_p]
        library.cudasim_release_stalled.restype = None
        library.cudasim_holdings.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_uint64)]
        library.cudasim_holdings.restype = None
        self._library, self._world, self._call_names = library, world, call_names

    @classmethod
    def here(cls) -> Faults:
        """Those of the world that this process lives in."""
        # The directory of the libraries is the first of World.env()'s.
        path = Path(os.environ["LD_LIBRARY_PATH"].split(":")[0]) / "libcudasim.so"
        library = ctypes.CDLL(str(path))
        library.cudasim_open.restype = ctypes.c_void_p
        library.cudasim_open.argtypes = [ctypes.c_char_p]
        library.cudasim_call_name.restype = ctypes.c_char_p
        names = [library.cudasim_call_name(call).decode() for call in range(library.cudasim_call_count())]
        return cls(library, library.cudasim_open(os.environ["CUDASIM_WORLD"].encode()), names)

    def fail(self, code: str, call: str | None = None, *, at: int = 1, times: int = 1, pid: int = 0) -> None:
        """The `at`th call from now on fails with this code, and the `times - 1` after it."""
        self._order(call, pid, at, times, code, 0)

    def stall(
        self, call: str | None = None, *, at: int = 1, for_s: float | None = None, code: str = "", pid: int = 0
    ) -> None:
        """The `at`th call from now on waits so long first, or until `release`. Then it fails if there is a code."""
        self._order(call, pid, at, 1, code, _UNTIL_RELEASED if for_s is None else round(for_s * 1e9))

    def clear(self) -> int:
        """Nothing fails or stalls any more. How many orders had not been met to the end."""
        return int(self._library.cudasim_clear_faults(self._world))

    def wait_for_stalled(self, calls: int = 1) -> None:
        """Until so many calls wait to be released."""
        give_up_s = time.monotonic() + _WAIT_S
        while self._library.cudasim_stalled(self._world) != calls:
            if time.monotonic() > give_up_s:
                raise TimeoutError(f"no {calls} calls stalled")
            time.sleep(0.001)

    def release(self) -> None:
        """Every call that stalls until it is released goes on."""
        self._library.cudasim_release_stalled(self._world)

    def holdings(self, pid: int) -> Holdings:
        numbers = (ctypes.c_uint64 * 5)()
        self._library.cudasim_holdings(self._world, pid, numbers)
        return Holdings(*numbers)

    def _order(self, call: str | None, pid: int, at: int, times: int, code: str, stall_ns: int) -> None:
        number = _ANY_CALL if call is None else self._call_names.index(call)
        if at < 1 or times < 1:
            raise ValueError(f"at {at}, {times} times")
        result, is_sticky = CODES[code] if code else 0, code in STICKY
        if self._library.cudasim_add_fault(self._world, number, pid, at - 1, times, result, is_sticky, stall_ns):
            raise ValueError("too many orders at a time")
