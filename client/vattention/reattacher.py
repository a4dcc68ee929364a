"""Brings a session back whose stream broke: a thread tries to re-attach it until that is done, or hopeless."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator

from vatt.errors import (
    Closed,
    ForkedSession,
    InvalidRequest,
    SessionUnknown,
    TenantDenied,
    VattError,
    VersionUnsupported,
)

log = logging.getLogger(__name__)

# Between two tries: a vattd that is started anew is there within a second or so.
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
# No later try can do better.
_FINAL = (SessionUnknown, TenantDenied, VersionUnsupported, InvalidRequest, Closed, ForkedSession)


def pauses_s() -> Iterator[float]:
    """How long to wait before each try. At random, so that engines do not come all at once."""
    longest_s = FIRST_PAUSE_S
    while True:
        yield random.uniform(0.5, 1.0) * longest_s
        longest_s = min(2 * longest_s, LONGEST_PAUSE_S)


class Reattacher:
    """`lost` is why the session cannot come back, once that is known. Thread-safe."""

    def __init__(self, reattach: Callable[[], None], is_attached: Callable[[], bool]) -> None:
        self.lost: VattError | None = None
        self._reattach = reattach
        self._is_attached = is_attached
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_stopped = False

    def wake(self) -> None:
        """The stream broke. Returns at once."""
        with self._changed:
            if self._is_stopped or self.lost is not None or self._thread is not None:
                return
            self._thread = threading.Thread(target=self._run, name="vattention-reattach", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:  # no thread to be had, or the interpreter is about to end
                self._thread = None
                log.warning("the session is not re-attached by itself: %s", error)

    def wait(self, timeout_s: float) -> None:
        """Until the session is attached, or lost, or so long."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_attached() or self.lost is not None or self._is_stopped, max(0.0, timeout_s)
            )

    def note_attached(self) -> None:
        """It was re-attached, by whomever."""
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """The session is about to close."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        for pause_s in pauses_s():
            with self._changed:
                if self._is_stopped or self.lost is not None or self._is_attached():
                    self._thread = None
                    self._changed.notify_all()
                    return
            if not self._try():
                with self._changed:
                    self._changed.wait_for(lambda: self._is_stopped, pause_s)

    def _try(self) -> bool:
        try:
            self._reattach()
        except _FINAL as error:
            with self._changed:
                if not self._is_stopped:
                    log.error("the session is lost: %s", error)
                self.lost = error
        except VattError as error:
            log.debug("not re-attached yet: %s", error)
            return False
        except Exception:  # the thread's boundary
            log.exception("re-attaching: unexpected")
            return False
        return True
