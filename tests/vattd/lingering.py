"""A descriptor whose last close takes as long as one likes."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def lingering(seconds: int) -> Iterator[socket.socket]:
    """A TCP socket with data that nobody reads. While the block runs, its last close waits so long for that."""
    with socket.socket() as listener, socket.socket() as sender:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        sender.connect(listener.getsockname())
        receiver, _ = listener.accept()
        with receiver:
            sender.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    sender.send(b"x" * 65536)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
            yield sender
