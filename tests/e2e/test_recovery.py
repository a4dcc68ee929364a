"""vattd ends, engines go on, another vattd knows what they hold: nothing lost, nothing lent twice."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from tests.daemon import Vattd, pages_of
from tests.e2e.conftest import PAGE, Rig
from vattention import Session

POOL_PAGES = 256
WITHIN_S = 20.0


def restart(vattd: Vattd, number: signal.Signals = signal.SIGKILL) -> None:
    vattd.stop(number)
    vattd.start()


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline_s, "not in time"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_session_is_back_with_its_pages_and_goes_on(rig: Callable[..., Rig], number: signal.Signals) -> None:
    there = rig(POOL_PAGES)
    with Session.connect("a", socket_dir=there.vattd.socket_dir) as session:
        pages = session.lease(40)
        session_id = session.session_id
        restart(there.vattd, number)
        more = session.lease(10)
        assert session.session_id == session_id
        status = there.vattd.status()
        assert [(one.session_id, one.leased_bytes // PAGE) for one in status.sessions] == [(session_id, 50)]
        assert status.daemon.recovered_sessions_total == 1
        session.give_back(pages)
        session.give_back(more)
        until(lambda: pages_of(there.vattd.status())["quarantined"] == 0)
        assert there.vattd.pages()["leased"] == 0
        assert sum(extent.page_count for extent in session.lease(POOL_PAGES)) == POOL_PAGES
