"""A vattd on a busy machine, which takes its time to answer a new connection."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.daemon import Vattd
from vattention.session import Session

# Longer than the pauses between attempts, and shorter than anybody would call a failure.
LATE_S = 0.5


@contextmanager
def slow_door(front: Path, behind: Path) -> Iterator[None]:
    """A socket that passes connections on to another one, each after a while."""
    opened: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def begin(work: Callable[..., None], *arguments: socket.socket) -> None:
        threads.append(threading.Thread(target=work, args=arguments))
        threads[-1].start()

    def pass_on(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        with suppress(OSError):
            other.shutdown(socket.SHUT_WR)

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                engine = listener.accept()[0]
                daemon = socket.socket(socket.AF_UNIX)
                opened.extend((engine, daemon))
                threading.Event().wait(LATE_S)
                daemon.connect(str(behind))
                begin(pass_on, engine, daemon)
                begin(pass_on, daemon, engine)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(front))
        listener.listen()
        begin(serve, listener)
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            threads[0].join()
            for end in opened:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for end in opened:
                end.close()


def test_a_session_waits_for_a_vattd_that_is_slow_to_answer(own_vattd: Vattd) -> None:
    engine_socket = own_vattd.sockets.engine
    behind = engine_socket.with_name("behind.sock")
    engine_socket.rename(behind)
    with slow_door(engine_socket, behind):
        with Session.connect("patient", socket_dir=own_vattd.socket_dir) as session:
            session.give_back(session.lease(1))
