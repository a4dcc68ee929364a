"""The local sockets between a scheduler and the workers of its engine, in whatever processes vLLM put them."""

from __future__ import annotations

import logging
import os
import socket
import stat
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from vatt.errors import InvalidRequest, VattError
from vattention.integrations.vllm.messages import Failed, Subscribe

log = logging.getLogger(__name__)


def socket_path(instance_id: str, data_parallel_index: int, rank: int) -> Path:
    """Where a rank of this engine listens."""
    directory = Path(tempfile.gettempdir()) / f"vattd-vllm-{os.getuid()}-{instance_id}-{data_parallel_index}"
    return directory / f"rank-{rank}.sock"


class Port:
    """A rank's end: answers messages, each connection in a thread of its own, and tells subscribers what is wanted."""

    def __init__(self, path: Path, answer: Callable[[Any], object]) -> None:
        self._path = path
        self._answer = answer
        self._subscribers: list[Connection] = []
        self._connections: set[Connection] = set()
        self._closed = False
        self._lock = threading.Lock()
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _check_private(path.parent)
        path.unlink(missing_ok=True)
        self._listener = Listener(str(path), "AF_UNIX")
        threading.Thread(target=self._accept, name="vattd-vllm-port", daemon=True).start()

    def tell(self, message: object) -> bool:
        """Send to who has subscribed; is there anybody?"""
        with self._lock:
            for connection in list(self._subscribers):
                try:
                    connection.send(message)
                except OSError:  # it has gone, and the engine with it
                    self._subscribers.remove(connection)
            return bool(self._subscribers)

    def close(self) -> None:
        """Hang up on everybody, and end the threads. Idempotent."""
        with self._lock:
            self._closed = True
        with suppress(OSError):  # to close a socket does not wake who waits for it; to connect does
            Client(str(self._path), "AF_UNIX").close()
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                _hang_up(connection)
        self._path.unlink(missing_ok=True)
        with suppress(OSError):  # other ranks' sockets are there still
            self._path.parent.rmdir()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._closed:
                    connection.close()
                    return
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=[connection], name="vattd-vllm-serve", daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        with suppress(EOFError, OSError):
            while True:
                message = connection.recv()
                if isinstance(message, Subscribe):
                    with self._lock:
                        self._subscribers.append(connection)
                    return
                connection.send(self._answered(message))
        with self._lock:
            self._connections.discard(connection)
        connection.close()

    def _answered(self, message: object) -> object:
        try:
            return self._answer(message)
        except VattError as error:
            return Failed(str(error))
        except Exception as error:  # the thread's boundary: who asked is told
            log.exception("vattd: %s: unexpected", type(message).__name__)
            return Failed(f"{type(error).__name__}: {error}")


class Line:
    """The scheduler's end of one connection to a rank: a message is answered before the next one. For one thread."""

    def __init__(self, path: Path) -> None:
        try:
            _check_private(path.parent)
            self._connection = Client(str(path), "AF_UNIX")
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise InvalidRequest(
                f"no worker of this engine listens at {path}: vattd lends memory to workers on the scheduler's machine "
                "that run with vattention's worker class; leave worker_cls as it is, and run no workers elsewhere"
            ) from error

    def call(self, message: object) -> Any:
        """Raises VattError with what the rank's error said; EOFError or OSError if it has ended."""
        self._connection.send(message)
        answer = self._connection.recv()
        if isinstance(answer, Failed):
            raise VattError(answer.error)
        return answer

    def subscribe(self) -> Connection:
        """Turn this into a connection that Wanted messages can be read from."""
        self._connection.send(Subscribe())
        return self._connection

    def close(self) -> None:
        self._connection.close()


def _hang_up(connection: Connection) -> None:
    """Have both ends find it closed, also a thread of this process that reads from it."""
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)


def _check_private(directory: Path) -> None:
    """Messages are pickles: nobody else may put a socket there."""
    status = directory.stat()
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise InvalidRequest(f"{directory} belongs to somebody else, or others may write to it: remove it")
