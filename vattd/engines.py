"""The attached sessions, as far as the pool has something to tell them."""

from __future__ import annotations

from typing import Protocol

from vattd.reclaim import Request


class Engines(Protocol):
    """`Sessions`, but for tests."""

    def listens(self, session_id: str) -> bool:
        """Is its stream up?"""

    def ask_back(self, request: Request) -> None: ...
    def kill(self, session_id: str, cause: str) -> None:
        """Raises KillRefused."""


class NoEngines:
    """Before there is anybody to tell."""

    def listens(self, session_id: str) -> bool:
        return False

    def ask_back(self, request: Request) -> None: ...

    def kill(self, session_id: str, cause: str) -> None: ...
