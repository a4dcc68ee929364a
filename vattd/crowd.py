"""How much of what a user says waits at a time. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from vatt.errors import TooBusy


class Crowd:
    """Calls that wait, by user, as heavy as they are: at most `most` of each."""

    def __init__(self, most: float) -> None:
        self._most = most
        self._weights: dict[Hashable, float] = {}

    def __len__(self) -> int:
        """How many users wait."""
        return len(self._weights)

    @contextmanager
    def one_more(self, user: Hashable, weight: float = 1.0) -> Iterator[None]:
        """A call waits as long as the block runs. Raises TooBusy if there is no room."""
        before = self._weights.get(user, 0.0)
        if before and before + weight > self._most:
            raise TooBusy(f"{before:.0f} calls of this user wait already: retry when some have been answered")
        self._weights[user] = before + weight
        try:
            yield
        finally:
            self._weights[user] -= weight
            if self._weights[user] < 0.5:  # a call weighs 1 at least
                del self._weights[user]
