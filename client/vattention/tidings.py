"""What vattd has told a session."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from vatt.v1 import vatt_pb2
from vattention.guarantee import Guarantee
from vattention.reclaimer import Reclaim

log = logging.getLogger(__name__)


class Tidings:
    """The last word of each kind, by whichever of a session's streams it came.

    One thread hears at a time: the stream's, which waits for nobody, so a listener returns at once. Any may look.
    """

    def __init__(self) -> None:
        self.last_notice: vatt_pb2.Notice | None = None
        self.guarantee: Guarantee | None = None
        self.is_draining = self.is_evicted = False
        self._lock = threading.Lock()
        self._on_reclaim: Callable[[Reclaim], None] | None = None
        self._early: Reclaim | None = None  # came before anybody listened

    def hear_attached(self) -> None:
        """A new stream: vattd says anew whether it is drained. Evicted is for good."""
        self.is_draining = False

    def hear_notice(self, notice: vatt_pb2.Notice) -> None:
        self.last_notice = notice
        if notice.kind in (vatt_pb2.Notice.KIND_DRAINING, vatt_pb2.Notice.KIND_RESUMED):
            self.is_draining = notice.kind == vatt_pb2.Notice.KIND_DRAINING
        elif notice.kind == vatt_pb2.Notice.KIND_EVICTED:
            self.is_evicted = True

    def hear_guarantee(self, told: vatt_pb2.Guarantee) -> None:
        self.guarantee = Guarantee.from_wire(told)
        log.info("vattd says what the tenant is guaranteed: %s", self.guarantee)

    def hear_reclaim(self, wanted: vatt_pb2.Reclaim) -> None:
        reclaim = Reclaim.from_wire(wanted)
        log.info("vattd wants %d pages back: %s", reclaim.page_count, wanted.message)
        with self._lock:
            if self._on_reclaim is None:
                self._early = reclaim
            else:
                self._on_reclaim(reclaim)

    def tell_of_reclaims(self, listener: Callable[[Reclaim], None]) -> None:
        """Have `listener` called with every Reclaim, also with one that has come already."""
        with self._lock:
            self._on_reclaim = listener
            if self._early is not None:
                listener(self._early)
                self._early = None
