"""Where readings come from: one vattd, asked again and again."""

from __future__ import annotations

import time

from vatt.errors import DaemonUnreachable, VattError
from vatt.sockets import Sockets
from vattctl.daemon import Admin
from vattctl.top.reading import Reading


class Source:
    """On one connection while vattd answers, on a new one after it did not: gRPC would wait ever longer to try again.

    `close` may come from another thread than `read`, which then raises at once.
    """

    def __init__(self, sockets: Sockets) -> None:
        self.sockets = sockets
        self._admin: Admin | None = None

    def read(self, cell_count: int) -> Reading:
        """Raises VattError: DaemonUnreachable with what to type, or why vattd refuses."""
        try:
            admin = self._admin = self._admin or Admin(self.sockets, "top")
            status, page_map = admin.status(), admin.page_map(cell_count)
        except VattError:
            self.close()
            raise
        except ValueError as error:  # gRPC's word for a channel that was closed between two calls
            raise DaemonUnreachable(f"nobody asks {self.sockets.admin} any more") from error
        return Reading(time.monotonic(), status, page_map)

    def close(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()
