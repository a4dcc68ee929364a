"""What the requests of a paged cache hold, in the words that vattd counts in. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from vatt.usage import Usage


class Block(Protocol):
    block_id: int
    is_null: bool


def usage_of(
    lengths: Mapping[str, int], blocks_of: Mapping[str, Sequence[Block]], block_tokens: int, block_bytes: int
) -> Usage:
    """The usage of requests with so many computed tokens, by request id, in these blocks.

    A block that several requests share is full, and counts once: in the bytes of tokens as well as in what
    PagedAttention with other block sizes would take.
    """
    used = [[block.block_id for block in blocks_of[number] if not block.is_null] for number in lengths]
    shared = sum(map(len, used)) - len({block for blocks in used for block in blocks})
    token_bytes = block_bytes / block_tokens

    def in_blocks(size: int) -> int:
        """Bytes that the requests' tokens would take in blocks of so many, as far as they have blocks here at all."""
        tokens = [
            min(length, len(blocks) * block_tokens) for length, blocks in zip(lengths.values(), used, strict=True)
        ]
        return max(0, int((sum(-(-count // size) * size for count in tokens) - shared * block_tokens) * token_bytes))

    return Usage(token_bytes=in_blocks(1), paged16_bytes=in_blocks(16), paged256_bytes=in_blocks(256))
