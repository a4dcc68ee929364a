"""One vattd a device: locks that die with their holder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from contextlib import ExitStack
from pathlib import Path

from vatt.errors import InvalidRequest, SystemLimit
from vattention.vmm.driver import Device

# Incarnations are seconds since this moment, which fits 31 bits until 2088.
_EPOCH_S = 1_600_000_000


class DeviceLock:
    """Held from before the sockets are bound until after they are gone. Its holder alone may remove stale sockets.

    Two locks: a file in the sockets' directory, which keeps the holder's pid and incarnation, so that the next
    incarnation is later whatever the clock says; and for a GPU a name that all users of this machine share, whatever
    their socket directories (an abstract Unix socket; containers with a network of their own do not see it).
    """

    def __init__(self, path: Path, device: Device) -> None:
        """Raises InvalidRequest if another vattd holds the device."""
        self._path = path
        with ExitStack() as undo:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            undo.callback(os.close, self._fd)
            words = os.pread(self._fd, 64, 0).split()
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InvalidRequest(_taken(device, f"pid {words[0].decode()}" if words else "starting")) from None
            self._last = int(words[1]) if len(words) == 2 and words[1].isdigit() else 0
            if device.backend == "cuda":
                undo.enter_context(_claim_gpu(device))
            self._undo = undo.pop_all()

    def incarnation(self, now_s: float) -> int:
        """A number for this run, greater than every earlier one's. Raises SystemLimit."""
        incarnation = max(int(now_s) - _EPOCH_S, self._last + 1)
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d %d\n" % (os.getpid(), incarnation), 0)
        except OSError as error:
            raise SystemLimit(f"cannot write {self._path} ({error.strerror})") from error
        return incarnation

    def release(self) -> None:
        self._undo.close()


def _claim_gpu(device: Device) -> socket.socket:
    """The machine's one name for the GPU, without NVML's prefix: GPU-x and MIG-x are the same device."""
    name = device.uuid.split("-", 1)[1]
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0vattd/{name}")
    except OSError as error:
        claim.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise InvalidRequest(_taken(device, "with another socket directory")) from None
    return claim


def _taken(device: Device, who: str) -> str:
    return f"a vattd for {device.uuid} runs already ({who}): see `vattctl status`, or stop it with `vattd stop`"
