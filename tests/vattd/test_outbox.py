"""Answers that lie unread: what waits for them, and how long they count."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from vatt.errors import SystemLimit
from vattd import outbox
from vattd.closer import Closer
from vattd.outbox import Outbox, Outboxes

SOON_S = 20.0


class Bench:
    """Connections of one user, and their other ends."""

    def __init__(self) -> None:
        self.closer = Closer()
        self.outboxes = Outboxes(self.closer)
        self.boxes: list[Outbox] = []
        self.ends: list[socket.socket] = []

    def connect(self, user: int = 7) -> tuple[Outbox, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        theirs.settimeout(SOON_S)
        self.boxes.append(self.outboxes.open(ours, user))
        self.ends.append(theirs)
        return self.boxes[-1], theirs

    def close(self) -> None:
        for box in self.boxes:
            if not box._is_closed:
                box.close()
        self.outboxes.close()
        for end in self.ends:
            end.close()

    async def deliver(self, user: int = 7) -> tuple[Outbox, socket.socket]:
        """A descriptor on a new connection."""
        box, theirs = self.connect(user)
        await box.take_place()
        box.send(b"answer", [0])
        return box, theirs


def read(theirs: socket.socket) -> bytes:
    packet, fds, _, _ = socket.recv_fds(theirs, 100, 1)
    for fd in fds:
        os.close(fd)
    return packet


def run(story: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        bench = Bench()
        try:
            await asyncio.wait_for(story(bench), SOON_S)
        finally:
            bench.close()

    asyncio.run(main())


def test_who_has_read_is_told_from_who_has_not() -> None:
    async def story(bench: Bench) -> None:
        box, theirs = bench.connect()
        await box.until_read()
        for packet in (b"one", b"two"):
            box.send(packet, [])
        reading = asyncio.create_task(box.until_read())
        assert read(theirs) == b"one"
        await asyncio.sleep(0.01)  # it is woken by each packet
        assert not reading.done()
        assert read(theirs) == b"two"
        await reading
        box.send(b"three", [])
        reading = asyncio.create_task(box.until_read())
        await asyncio.sleep(0)
        theirs.close()
        await reading

    run(story)


@pytest.mark.parametrize("end", ["read", "closed"])
def test_a_user_has_so_many_answers_unread_and_others_have_theirs(end: str) -> None:
    async def story(bench: Bench) -> None:
        unread = [await bench.deliver() for _ in range(outbox.MOST_UNREAD)]
        waiting = asyncio.create_task(bench.deliver())
        for _ in range(10):
            await asyncio.sleep(0)
        await bench.deliver(user=8)
        assert not waiting.done()
        if end == "read":
            read(unread[3][1])
        else:
            unread[3][1].close()
        await waiting
        for box, _ in unread:
            box.close()

    run(story)


def test_a_connection_that_is_closed_counts_until_its_answer_has_been_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else who connects again and again could have as many as it likes."""
    monkeypatch.setattr(outbox, "PLACE_WITHIN_S", 0.01)

    async def story(bench: Bench) -> None:
        unread = [await bench.deliver() for _ in range(outbox.MOST_UNREAD)]
        for box, _ in unread:
            box.close()
        with pytest.raises(SystemLimit, match="lie unread by processes of uid 7"):
            await bench.deliver()
        for _, theirs in unread:
            assert read(theirs) == b"answer"
            assert theirs.recv(100) == b"", "the end is seen as of any other"
        await bench.deliver()

    run(story)


def test_who_gives_up_waiting_takes_no_place() -> None:
    async def story(bench: Bench) -> None:
        unread = [await bench.deliver() for _ in range(outbox.MOST_UNREAD)]
        late, _ = bench.connect()
        waiting = asyncio.create_task(late.take_place())
        await asyncio.sleep(0)
        waiting.cancel()
        late.close()
        read(unread[0][1])
        await asyncio.gather(waiting, return_exceptions=True)
        await bench.deliver()

    run(story)


def test_an_answer_that_is_never_sent_frees_its_place() -> None:
    async def story(bench: Bench) -> None:
        for _ in range(outbox.MOST_UNREAD + 1):
            box, _ = bench.connect()
            await box.take_place()
            box.look()  # of an earlier answer
            box.close()

    run(story)


def test_a_refusal_frees_the_place_of_what_it_refuses() -> None:
    async def story(bench: Bench) -> None:
        for _ in range(outbox.MOST_UNREAD + 1):
            box, theirs = bench.connect()
            await box.take_place()
            box.send(b"refused", [])
            assert read(theirs) == b"refused"
            await box.until_read()

    run(story)
