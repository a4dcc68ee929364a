"""The audit log: every verb of an operator that changes something, a line of JSON each."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vatt.errors import InvalidRequest, VattError

log = logging.getLogger(__name__)


class AuditLog:
    """Appends to one file, which only its owner may read. Whoever rotates it may move it away at any time."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidRequest if it cannot be written: nobody should find that out afterwards."""
        self.path = path
        try:
            os.close(self._open())
        except OSError as error:
            raise InvalidRequest(f"cannot write {path} ({error.strerror}): choose another --state-dir") from error

    @contextmanager
    def entry(self, verb: str, caller: str, arguments: Mapping[str, Any]) -> Iterator[None]:
        """Note what becomes of what is done under it. `caller` is the client's word: the lock is the socket's mode."""
        outcome = "INTERNAL"
        try:
            yield
            outcome = "done"
        except VattError as error:
            outcome = error.reason
            raise
        except asyncio.CancelledError:  # the caller went away: what was begun goes on
            outcome = "CANCELLED"
            raise
        finally:
            self._append(
                {
                    "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                    "verb": verb,
                    "caller": caller,
                    "arguments": dict(arguments),
                    "outcome": outcome,
                }
            )

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def _append(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps(entry)
        log.info("audit: %s", line)
        try:
            fd = self._open()
            try:
                os.write(fd, line.encode() + b"\n")
            finally:
                os.close(fd)
        except OSError as error:
            log.error("the audit log %s cannot be written: %s", self.path, error)
