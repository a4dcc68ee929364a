"""A session that is closed while no vattd answers: the next one hears of it, and nobody waits for that."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from tests.daemon import Vattd
from vatt.errors import DriverError
from vattention.session import Session

WITHIN_S = 30.0
# It kills vattd itself. What it prints: is there such a thread, and how many threads has a child.
PROCESS = """
import os, signal, sys, threading
from vattention.session import Session

session = Session.connect("ends", socket_dir=sys.argv[1])
session.lease(16)
os.kill(int(sys.argv[2]), signal.SIGKILL)
session.close()
is_told = any(thread.name == "vattention-farewell" for thread in threading.enumerate())
child = os.fork()
if child == 0:
    os._exit(threading.active_count())
print(is_told, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def farewells() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "vattention-farewell"]


def wait_until_told() -> None:
    for thread in farewells():
        thread.join(WITHIN_S)
        assert not thread.is_alive()


def leased(vattd: Vattd) -> list[tuple[str, int]]:
    return [(session.session_id, session.leased_bytes) for session in vattd.status().sessions]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_pages_of_a_session_that_closed_while_no_vattd_ran_are_free_again(
    own_vattd: Vattd, number: signal.Signals
) -> None:
    with Session.connect("closing", socket_dir=own_vattd.socket_dir, patience_s=WITHIN_S) as other:
        session = Session.connect("closing", socket_dir=own_vattd.socket_dir)
        session.lease(16)
        kept = other.lease(8)
        own_vattd.stop(number)
        session.close()
        own_vattd.start()
        wait_until_told()
        other.give_back(other.lease(1))  # it is back
        assert leased(own_vattd) == [(other.session_id, 8 * other.page_size_bytes)]
        other.give_back(kept)


def test_a_vattd_that_was_stopped_hears_of_it_when_it_goes_on(own_vattd: Vattd) -> None:
    session = Session.connect("closing", socket_dir=own_vattd.socket_dir)
    session.lease(16)
    own_vattd.process.send_signal(signal.SIGSTOP)
    try:
        session.close()
    finally:
        own_vattd.process.send_signal(signal.SIGCONT)
    wait_until_told()
    assert leased(own_vattd) == []


def test_pages_that_could_not_be_unmapped_stay_taken(own_vattd: Vattd, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session.connect("closing", socket_dir=own_vattd.socket_dir)
    session.lease(3)
    close = session.mapper.close

    def fail() -> None:
        raise DriverError("no", call="close")

    monkeypatch.setattr(session.mapper, "close", fail)
    own_vattd.stop(signal.SIGKILL)
    with pytest.raises(DriverError):
        session.close()
    assert not farewells()
    own_vattd.start()
    assert leased(own_vattd) == [(session.session_id, 3 * session.page_size_bytes)]
    close()


def test_nobody_is_told_where_no_vattd_could_know_of_it(own_vattd: Vattd) -> None:
    session = Session.connect("closing", socket_dir=own_vattd.socket_dir)
    own_vattd.stop(signal.SIGKILL)
    session.close()
    assert farewells()
    own_vattd.sockets.journal.unlink()
    wait_until_told()


def test_it_keeps_no_process_from_ending_and_is_not_in_a_forked_child(own_vattd: Vattd) -> None:
    arguments = [str(own_vattd.socket_dir), str(own_vattd.pid)]
    ended = subprocess.run(
        [sys.executable, "-c", PROCESS, *arguments], capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "True 1\n"), ended.stderr
    own_vattd.stop(signal.SIGKILL)
    own_vattd.start()
    assert leased(own_vattd) == []
