"""What an engine's KV caches hold, in numbers that add up over caches, sessions and tenants."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """What an engine's KV caches hold, by its own word, and what other ways of holding the same tokens would take."""

    mapped_pages: int = 0  # distinct physical pages that are mapped somewhere
    token_bytes: int = 0  # bytes of them that tokens fill; a shared prefix counts once
    static_reservation_bytes: int = 0  # a cache without paging: every slot at its full context from the start
    paged16_bytes: int = 0  # PagedAttention in blocks of 16 tokens, for the same lengths; a shared prefix counts once
    paged256_bytes: int = 0  # and in blocks of 256

    def __post_init__(self) -> None:
        if any(type(number) is not int or number < 0 for number in self._numbers):
            raise ValueError(f"not a usage: {self}")

    def __add__(self, other: Usage) -> Usage:
        return Usage(*map(operator.add, self._numbers, other._numbers))

    @property
    def _numbers(self) -> tuple[int, ...]:
        """As `astuple`, which takes many times as long."""
        return (
            self.mapped_pages,
            self.token_bytes,
            self.static_reservation_bytes,
            self.paged16_bytes,
            self.paged256_bytes,
        )


def total_of(usages: Iterable[Usage]) -> Usage:
    """The sum, in one go: a snapshot adds up every session's."""
    return Usage(*map(sum, zip(*(usage._numbers for usage in usages), strict=True)))
