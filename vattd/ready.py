"""How a starting vattd tells whoever waits for it that it serves, or why it does not."""

from __future__ import annotations

import json
import os


class ReadyPipe:
    """One line of JSON to `--ready-fd`, said once. Without a descriptor nobody waits, and nothing is said."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def say(self, facts: dict[str, object]) -> None:
        """Raises OSError if nobody reads any more: then there is no reason to serve."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            os.write(fd, json.dumps(facts).encode() + b"\n")
        finally:
            os.close(fd)
