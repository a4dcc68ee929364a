"""What sessions do that no test can have a real process do."""

from __future__ import annotations

import errno
import os
import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vatt.errors import InvalidRequest, KillRefused
from vattd.peer import Peer
from vattd.pool import Pool
from vattd.sessions import MAX_SESSIONS_PER_TENANT, MAX_SESSIONS_PER_USER, Sessions


def nobodys_sessions() -> Sessions:
    return Sessions(cast(Pool, None), cast(Any, None), lambda tenant: cast(Any, None), cast(Any, None), cast(Any, None))


def test_a_users_sessions_are_bounded_and_anothers_are_not_kept_out() -> None:
    sessions = nobodys_sessions()
    for pid in range(1, MAX_SESSIONS_PER_USER + 1):
        peer = Peer(pid, 7, frozenset(), -1)
        sessions._sessions[f"{pid}-1"] = cast(Any, SimpleNamespace(peer=peer, tenant=f"t{pid}"))
    with pytest.raises(InvalidRequest, match="uid 7 has 1024 sessions, the most it can"):
        sessions._check_room(7, "new")
    sessions._check_room(8, "new")


def test_a_tenants_sessions_are_bounded_and_anothers_are_not_kept_out() -> None:
    sessions = nobodys_sessions()
    for pid in range(1, MAX_SESSIONS_PER_TENANT + 1):
        peer = Peer(pid, pid, frozenset(), -1)
        sessions._sessions[f"{pid}-1"] = cast(Any, SimpleNamespace(peer=peer, tenant="full"))
    with pytest.raises(InvalidRequest, match="tenant full has 1024 sessions, the most it can"):
        sessions._check_room(0, "full")
    sessions._check_room(0, "another")


def test_a_kill_that_the_kernel_forbids_is_refused_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(pidfd: int, number: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(signal, "pidfd_send_signal", forbid)
    sessions = nobodys_sessions()
    sessions._sessions["7-1"] = cast(Any, SimpleNamespace(tenant="a", peer=SimpleNamespace(pid=7, uid=0, pidfd=-1)))
    with pytest.raises(KillRefused, match=r"process 7 of session 7-1 is uid 0's.*`sudo kill -9 7`"):
        sessions.kill("7-1", "an operator evicts it")
    sessions.kill("8-1", "it is gone")
