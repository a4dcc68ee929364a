"""What sarathi's scheduler believes to have: KV blocks by `num_free_kvblocks`, less what it promised meanwhile."""

from __future__ import annotations

import enum
from collections.abc import Collection

from tests.vattention.sarathi.sequence import Sequence


class Accounting(enum.Enum):
    """Whether promises are kept as upstream keeps them."""

    # A block is promised an iteration before it is mapped, and forgotten in between; of a prompt that comes in chunks
    # only those are taken that were run. So more may be admitted than there is.
    UPSTREAM = enum.auto()
    # A block is promised in the iteration that maps it, and what running prompts still lack is never promised twice.
    CORRECTED = enum.auto()


class BlockSpaceManager:
    def __init__(self, block_size: int, num_gpu_blocks: int, accounting: Accounting) -> None:
        self._block_size = block_size
        self._watermark_blocks = num_gpu_blocks // 100
        self._accounting = accounting
        self._free_blocks = self._promised_blocks = 0

    def set_free_blocks(self, free_blocks: int) -> None:
        self._free_blocks = free_blocks

    def begin_schedule(self, running: Collection[Sequence]) -> None:
        self._promised_blocks = 0
        if self._accounting is Accounting.CORRECTED:
            self._promised_blocks = sum(self._lacking(sequence) for sequence in running)

    def blocks(self, token_count: int) -> int:
        return -(-token_count // self._block_size)

    def can_allocate(self, sequence: Sequence) -> bool:
        left_blocks = self._free_blocks - self._promised_blocks - self.blocks(len(sequence))
        return left_blocks >= self._watermark_blocks

    def allocate(self, sequence: Sequence) -> None:
        self._promised_blocks += self.blocks(len(sequence))

    def can_append_slot(self, sequence: Sequence) -> bool:
        """For its next token. Upstream asks for a free block for every sequence, whether its token needs one or not."""
        left_blocks = self._free_blocks - self._promised_blocks
        return left_blocks > 0 if self._accounting is Accounting.UPSTREAM else left_blocks >= self._appended(sequence)

    def append_slot(self, sequence: Sequence) -> None:
        self._promised_blocks += self._appended(sequence)

    def free(self, sequence: Sequence) -> None:
        """Of a sequence that is preempted."""
        if self._accounting is Accounting.UPSTREAM:
            self._free_blocks += self.blocks(len(sequence))
        else:
            self._free_blocks += self.blocks(sequence.resident_tokens)
            self._promised_blocks -= self._lacking(sequence)

    def _appended(self, sequence: Sequence) -> int:
        """Blocks that the sequence's next token is promised."""
        if self._accounting is Accounting.UPSTREAM:
            return self.blocks(len(sequence) + 1) - self.blocks(len(sequence))
        return self.blocks(len(sequence)) - self.blocks(sequence.resident_tokens)

    def _lacking(self, sequence: Sequence) -> int:
        """Blocks of its prompt that the sequence was promised and has not taken."""
        if sequence.is_prefilled:
            return 0
        return self.blocks(sequence.prompt_len) - self.blocks(sequence.prompt_tokens_processed)
