"""Pages on several devices at once: for ranks of a tensor-parallel engine, and for replicas."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from random import Random
from typing import Protocol

from vatt.errors import InvalidRequest, PoolExhausted, WaitHopeless
from vatt.pages import Extent
from vattention.integers import as_integer
from vattention.page_source import LeasePurpose, PageLender, check_wait

# Between two tries; it doubles with each. The longest is short beside the time that pages take to come free.
FIRST_PAUSE_S = 0.002
LONGEST_PAUSE_S = 0.25


class DeviceSession(PageLender, Protocol):
    """What is needed of a session."""

    @property
    def device_uuid(self) -> str: ...


def lease_on_all(
    sessions: Sequence[DeviceSession],
    page_count: int,
    *,
    wait_s: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    random: Random | None = None,
) -> list[list[Extent]]:
    """Lease `page_count` pages in each of the sessions, all or none, for new requests (ADMIT). In their order.

    Nothing is held while waiting, so that two callers cannot wait for each other: devices are asked in the order of
    their UUIDs, at once or not at all. What has been leased when one refuses is given back; after a pause that one
    alone is waited for, and the others are asked again. Pauses grow with the tries and are of random length (`random`,
    else one of its own), so that two callers do not take from each other in turn for long.

    Raises the refusal once `wait_s` is over, InvalidRequest for two sessions of one device, which would wait for each
    other, and what Session.lease raises otherwise.
    """
    check_wait(wait_s)
    _check(sessions, as_integer(page_count, "page_count"))
    random = random if random is not None else Random()
    pause_s = FIRST_PAUSE_S
    deadline_s = clock() + wait_s
    order = sorted(range(len(sessions)), key=lambda at: sessions[at].device_uuid)
    # The one to wait for, which then comes first: nothing is held yet.
    refusing: int | None = None
    while True:
        held: dict[int, list[Extent]] = {}
        with ExitStack() as undo:
            for at in sorted(order, key=lambda at: at != refusing):  # stable: otherwise in order
                left_s = max(0.0, deadline_s - clock()) if at == refusing else 0.0
                try:
                    held[at] = sessions[at].lease(page_count, purpose=LeasePurpose.ADMIT, wait_s=left_s)
                except WaitHopeless:
                    raise
                except PoolExhausted:
                    if at == refusing or clock() >= deadline_s:
                        raise
                    refusing = at
                    break
                undo.callback(sessions[at].give_back, held[at])
            else:
                undo.pop_all()
                return [held[at] for at in range(len(sessions))]
        sleep(min(random.uniform(pause_s / 2, pause_s), max(0.0, deadline_s - clock())))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _check(sessions: Sequence[DeviceSession], page_count: int) -> None:
    if page_count < 1:
        raise InvalidRequest(f"a lease of {page_count} pages")
    for device_uuid, count in Counter(session.device_uuid for session in sessions).items():
        if count > 1:
            raise InvalidRequest(f"{count} of the sessions are of device {device_uuid}: give one for each device")
