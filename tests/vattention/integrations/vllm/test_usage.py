"""What requests hold, in the words vattd counts in."""

from __future__ import annotations

from dataclasses import dataclass

from vatt.usage import Usage
from vattention.integrations.vllm.usage import usage_of

TOKENS, TOKEN_BYTES = 128, 10


@dataclass
class Block:
    block_id: int
    is_null: bool = False


def usage(lengths: dict[str, int], blocks: dict[str, list[int]]) -> Usage:
    blocks_of = {name: [Block(number, is_null=number == 0) for number in numbers] for name, numbers in blocks.items()}
    return usage_of(lengths, blocks_of, TOKENS, TOKENS * TOKEN_BYTES)


def test_tokens_and_blocks_of_other_sizes_are_counted() -> None:
    held = usage({"a": 130, "b": 5}, {"a": [1, 2], "b": [3]})
    assert held == Usage(
        token_bytes=135 * TOKEN_BYTES, paged16_bytes=(144 + 16) * TOKEN_BYTES, paged256_bytes=2 * 256 * TOKEN_BYTES
    )


def test_a_shared_block_counts_once() -> None:
    held = usage({"a": 130, "b": 140}, {"a": [1, 2], "b": [1, 3]})
    assert held.token_bytes == (130 + 140 - TOKENS) * TOKEN_BYTES
    assert held.paged16_bytes == (144 + 144 - TOKENS) * TOKEN_BYTES


def test_tokens_without_a_block_do_not_count() -> None:
    """A sliding window has let go of the first ones; a request that waits has none."""
    assert usage({"a": 300}, {"a": [0, 0, 7]}).token_bytes == TOKENS * TOKEN_BYTES
    assert usage({"a": 300}, {"a": []}) == Usage()
