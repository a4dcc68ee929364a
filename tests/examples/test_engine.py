"""How a tenant's prompts become batches."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from examples.engine import MAX_BATCH_SIZE, MAX_BATCH_TOKENS, Prompt, in_batches


@given(lengths=st.lists(st.integers(1, 3000), max_size=30))
def test_batches_hold_every_prompt_once_and_stay_small(lengths: list[int]) -> None:
    batches = in_batches([Prompt("", [0] * length) for length in lengths])
    sizes = [[len(prompt.token_ids) for prompt in batch] for batch in batches]
    assert [size for batch in sizes for size in batch] == sorted(lengths)
    assert all(1 <= len(batch) <= MAX_BATCH_SIZE for batch in sizes)
    assert all(len(batch) == 1 or len(batch) * max(batch) <= MAX_BATCH_TOKENS for batch in sizes)
