"""What sessions do that no test can have a real process do."""

from __future__ import annotations

import errno
import os
import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vatt.errors import KillRefused
from vattd.pool import Pool
from vattd.sessions import Sessions


def test_a_kill_that_the_kernel_forbids_is_refused_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(pidfd: int, number: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(signal, "pidfd_send_signal", forbid)
    sessions = Sessions(cast(Pool, None), 1, lambda tenant: cast(Any, None), cast(Any, None), cast(Any, None))
    sessions._sessions["7-1"] = cast(Any, SimpleNamespace(tenant="a", peer=SimpleNamespace(pid=7, uid=0, pidfd=-1)))
    with pytest.raises(KillRefused, match=r"process 7 of session 7-1 is uid 0's.*`sudo kill -9 7`"):
        sessions.kill("7-1", "an operator evicts it")
    sessions.kill("8-1", "it is gone")
