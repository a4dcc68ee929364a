"""What vattention is compared with: blocks of a fixed number of tokens, by arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vatt.errors import InvalidRequest
from vattctl.replay.batching import Counts, OutOfBlocks


@dataclass(frozen=True, slots=True)
class Scheme:
    """KV in blocks of `block_tokens`: PagedAttention's, or, at the length of a whole context, static slots."""

    name: str
    block_tokens: int
    is_static: bool = False

    @classmethod
    def paged(cls, block_tokens: int) -> Scheme:
        return cls(f"paged{block_tokens}", block_tokens)

    @classmethod
    def static(cls, context_length: int) -> Scheme:
        name = f"{context_length // 1024}K" if context_length % 1024 == 0 else str(context_length)
        return cls(f"static {name}", context_length, is_static=True)

    def blocks(self, lengths: Counts) -> int:
        return int((-(-lengths // self.block_tokens)).sum())


def baselines(context_length: int) -> list[Scheme]:
    """Static slots of the context that is replayed and of a long one; PagedAttention with small and large blocks."""
    statics = sorted({context_length, max(context_length, 32768)})
    return [*(Scheme.static(length) for length in statics), Scheme.paged(16), Scheme.paged(256)]


class BlockMemory:
    """A scheme's memory under a budget; what is held is what `lengths` need.

    Invariant: a slot is in `_free` or has been admitted and not freed since.
    """

    def __init__(self, scheme: Scheme, token_bytes: int, budget_bytes: int, slot_count: int) -> None:
        self.scheme = scheme
        self.block_bytes = scheme.block_tokens * token_bytes
        self.budget_blocks = budget_bytes // self.block_bytes
        self.slot_count = slot_count
        self.grows = not scheme.is_static
        self._free = list(range(slot_count - 1, -1, -1))

    def blocks(self, lengths: Counts) -> int:
        return self.scheme.blocks(lengths)

    def admit(self, prompt_tokens: int) -> int:
        if not self._free:
            raise InvalidRequest(f"all {self.slot_count} slots are in use")
        return self._free.pop()

    def hold(self, lengths: Counts) -> None:
        if self.blocks(lengths) > self.budget_blocks:
            raise OutOfBlocks

    def free(self, slot: int, length: int) -> None:
        self._free.append(slot)

    def rest(self) -> None:
        """Nothing: blocks are free at once."""

    def can_hold(self, length_tokens: int) -> bool:
        return self.blocks(np.array([length_tokens])) <= self.budget_blocks
