"""A thread that goes on working for a scheduler until its engine ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from vatt.errors import VattError

log = logging.getLogger(__name__)

REST_AFTER_ERROR_S = 1.0


class Background:
    """Calls `work` over and over in a thread, until `stop` or until a worker of the engine has ended."""

    def __init__(self, name: str, work: Callable[[], None], at_end: Callable[[], None]) -> None:
        """`work` waits by itself for something to do, and returns soon after `stop`; then the thread calls `at_end`."""
        self._work = work
        self._at_end = at_end
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns at once; the thread ends by itself, and with the process."""
        self._stopped.set()

    def _run(self) -> None:
        try:
            self._go_on()
        finally:
            self._at_end()

    def _go_on(self) -> None:
        while not self.is_stopped:
            try:
                self._work()
            except (EOFError, OSError) as error:
                if not self.is_stopped:
                    log.debug("vattd: %s: a worker has ended: %s", self._thread.name, error)
                return
            except VattError as error:
                log.warning("vattd: %s: %s", self._thread.name, error)
                self._stopped.wait(REST_AFTER_ERROR_S)
            except Exception:  # the thread's boundary: a bug here must not take the engine with it
                log.exception("vattd: %s: unexpected", self._thread.name)
                self._stopped.wait(REST_AFTER_ERROR_S)
