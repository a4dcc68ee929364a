"""One vattd a device: a lock that dies with its holder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from vatt.errors import InvalidRequest

# Incarnations are seconds since this moment, which fits 31 bits until 2088.
_EPOCH_S = 1_600_000_000


class DeviceLock:
    """Held from before the sockets are bound until after they are gone. Its holder alone may remove stale sockets.

    The file keeps the holder's pid and incarnation, so that the next incarnation is later whatever the clock says.
    """

    def __init__(self, path: Path, device: str) -> None:
        """Raises InvalidRequest if another vattd holds the lock."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            words = os.pread(self._fd, 64, 0).split()
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = words[0].decode() if words else "unknown"
                raise InvalidRequest(
                    f"a vattd for {device} runs already (pid {pid}): see `vattctl status`, or stop it with `vattd stop`"
                ) from None
            self._last = int(words[1]) if len(words) == 2 and words[1].isdigit() else 0
        except BaseException:
            os.close(self._fd)
            raise

    def incarnation(self, now_s: float) -> int:
        """A number for this run, greater than every earlier one's."""
        incarnation = max(int(now_s) - _EPOCH_S, self._last + 1)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, b"%d %d\n" % (os.getpid(), incarnation), 0)
        return incarnation

    def release(self) -> None:
        os.close(self._fd)
