"""The one way to have a driver's calls fail in turn, on both backends."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Protocol

import pytest

from tests.cudasim.faults import FOR_EVER, Faults
from vattd import journal
from vattention.vmm import host_mapping, host_physical, host_slabs, libc


class Calls(Protocol):
    """Into libcuda, or into the kernel."""

    def fail(self, code: str, at: int, *, for_ever: bool = False) -> None:
        """The `at`th call from now on fails with this code and does nothing, and with `for_ever` all after it."""

    def clear(self) -> bool:
        """None fails any more. Did one?"""


class CudaCalls:
    """Those of this process, or of another in the same simulated world."""

    codes: tuple[str, ...] = ("OUT_OF_MEMORY", "INVALID_VALUE", "NOT_PERMITTED")

    def __init__(self, pid: int | None = None) -> None:
        self.faults = Faults.here()
        self._pid = pid if pid is not None else os.getpid()
        self._for_ever = False

    def fail(self, code: str, at: int, *, for_ever: bool = False) -> None:
        self._for_ever = for_ever
        # Two orders, so that the first shows whether any was met.
        self.faults.fail(code, at=at, pid=self._pid)
        if for_ever:
            self.faults.fail(code, at=at + 1, times=FOR_EVER, pid=self._pid)

    def clear(self) -> bool:
        return self.faults.clear() == int(self._for_ever)


# What the kernel may plausibly answer. EINTR only where Python does not repeat the call by itself.
_ERRNOS = {
    "ENOMEM": {"mmap", "munmap", "madvise", "fallocate", "memfd_create", "pwritev"},
    "EMFILE": {"memfd_create", "dup", "pidfd_open"},
    "ENOSPC": {"fallocate", "pwritev", "ftruncate", "pwrite"},
    "EINTR": {"fallocate"},
    "EPERM": {"fallocate", "fcntl", "fstat", "ftruncate", "mmap"},
}


class HostCalls:
    """The host drivers' system calls, counted and made to fail where Python meets libc."""

    def __init__(self) -> None:
        self._code = ""
        self._left = 0
        self._for_ever = self._met = False

    def fail(self, code: str, at: int, *, for_ever: bool = False) -> None:
        self._code, self._left, self._for_ever, self._met = code, at, for_ever, False

    def clear(self) -> bool:
        self._code = ""
        return self._met

    def errno_for(self, call: str) -> int:
        """What this call fails with; 0 if it is made. A code counts only the calls that may answer it."""
        if not self._code or call not in _ERRNOS[self._code]:
            return 0
        self._left -= 1
        if self._left == 0 or (self._left < 0 and self._for_ever):
            self._met = True
            return int(getattr(errno, self._code))
        return 0


class _Failing:
    """Stands for a module of the standard library: some of its functions ask first whether they are to fail."""

    def __init__(self, module: ModuleType, names: tuple[str, ...], calls: HostCalls) -> None:
        self._module = module
        for name in names:
            setattr(self, name, _failing_function(getattr(module, name), name, calls))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _failing_function(function: Callable[..., Any], name: str, calls: HostCalls) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        number = calls.errno_for(name)
        if number:
            raise OSError(number, os.strerror(number))
        return function(*args, **kwargs)

    return call


def _failing_libc(function: Callable[..., Any], name: str, failure: int | None, calls: HostCalls) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        number = calls.errno_for(name)
        if number:
            ctypes.set_errno(number)
            return failure
        return function(*args)

    return call


@contextmanager
def host_calls() -> Iterator[HostCalls]:
    """The drivers' own names for the kernel are replaced, and nobody else's."""
    calls = HostCalls()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("munmap", "madvise", "fallocate"):
            patch.setattr(libc, f"_{name}", _failing_libc(getattr(libc, f"_{name}"), name, -1, calls))
        patch.setattr(libc, "_mmap", _failing_libc(libc._mmap, "mmap", ctypes.c_void_p(-1).value, calls))
        failing_os = _Failing(os, ("memfd_create", "ftruncate", "dup", "fstat", "pwritev"), calls)
        for module in (host_physical, host_slabs, host_mapping):
            patch.setattr(module, "os", failing_os)
        failing_fcntl = _Failing(fcntl, ("fcntl",), calls)
        for module in (host_slabs, host_mapping):
            patch.setattr(module, "fcntl", failing_fcntl)
        yield calls


@contextmanager
def journal_writes() -> Iterator[HostCalls]:
    """The journal's alone."""
    calls = HostCalls()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "os", _Failing(os, ("pwrite",), calls))
        yield calls
