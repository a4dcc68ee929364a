"""The thread that computes: the one writer of all that the engine holds."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from vatt.errors import Closed
from vattention.chat.answer import Finish, FinishReason
from vattention.chat.scheduler import Scheduler

log = logging.getLogger(__name__)

# How often a scheduler that only keeps memory is stepped, to see whether vattd is drained: its operator waits for that.
DRAIN_LOOK_S = 1.0

T = TypeVar("T")
Command = Callable[[], None]


class Worker:
    """Steps a scheduler while it has work, and now and then while it keeps memory without any; between two steps it
    carries out what other threads ask for, in order."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="vattention-chat", daemon=True)
        self._thread.start()

    def call(self, do: Callable[[], T]) -> T:
        """Have it done between two steps; its result, or what it raises. Raises Closed after close()."""
        answer: Future[T] = Future()

        def command() -> None:
            try:
                answer.set_result(do())
            except BaseException as error:  # noqa: BLE001  the caller's, not this thread's
                answer.set_exception(error)

        self._put(command)
        return answer.result()

    def post(self, do: Command) -> None:
        """As `call`, without waiting. After close() it does nothing: all answers have ended."""
        try:
            self._put(do)
        except Closed:
            return

    def close(self) -> None:
        """End every answer as cancelled, and the thread after the step that is under way. Idempotent."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._inbox.put(None)
        try:
            self._thread.join()
        finally:  # interrupted or not: what it computes on is given back next
            self._thread.join()

    def _put(self, command: Command) -> None:
        with self._lock:
            if self._is_closed:
                raise Closed("the chat engine is closed")
            self._inbox.put(command)

    def _run(self) -> None:
        while True:
            try:
                look_s = DRAIN_LOOK_S if self._scheduler.keeps_idle else None
                command = self._inbox.get(not self._scheduler.has_work, look_s)
            except queue.Empty:
                self._guarded(self._scheduler.step)
                continue
            if command is None:
                self._scheduler.end_all(Finish(FinishReason.CANCELLED, "the chat engine was closed"))
                return
            self._guarded(command)

    def _guarded(self, do: Command) -> None:
        """One error of ours ends the answers under way, and not the engine."""
        try:
            do()
        except Exception as error:
            log.exception("the chat engine's own error")
            self._scheduler.end_all(Finish(FinishReason.FAILED, f"the engine's own error: {error!r}", error))
