"""What the requests of a paged cache hold, in the words that vattd counts in. Pure: time is an argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


class Manager(Protocol):
    """Of vLLM, the blocks of one kind of layers."""

    block_size: int
    req_to_blocks: Mapping[str, Sequence[Block]]


class UsageMeter:
    """The usage of all requests on each rank, counted now and then: to do so in each step costs milliseconds where they
    hold tens of thousands of blocks."""

    def __init__(self, managers: Sequence[Manager], block_bytes: int, reserved_tokens: int, every_s: float) -> None:
        """`reserved_tokens` is what a static reservation of the same requests would be for."""
        self._managers = managers
        self._block_bytes = block_bytes
        token_bytes = sum(block_bytes // manager.block_size for manager in managers)
        self._static = Usage(static_reservation_bytes=reserved_tokens * token_bytes)
        self._every_s = every_s
        self._due_s = float("-inf")
        self.last = Usage()

    def measure(self, lengths: Callable[[], Mapping[str, int]], now_s: float) -> Usage:
        """`lengths` are the tokens computed of each request, by its id; asked for only when it is time to count."""
        if now_s >= self._due_s:
            self._due_s = now_s + self._every_s
            counted = lengths()
            self.last = sum((self._of(manager, counted) for manager in self._managers), self._static)
        return self.last

    def _of(self, manager: Manager, lengths: Mapping[str, int]) -> Usage:
        blocks_of = manager.req_to_blocks
        held = {name: length for name, length in lengths.items() if name in blocks_of}
        return usage_of(held, blocks_of, manager.block_size, self._block_bytes)
