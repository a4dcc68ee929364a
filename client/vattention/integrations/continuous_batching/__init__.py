"""transformers' continuous batching (`model.generate_batch` and its managers) on leased pages.

    with paged_batching(session):
        outputs = model.generate_batch(prompts, max_new_tokens=100)

Its paged cache is one tensor, as large as it may ever be. Here that tensor is addresses only: pages are mapped when a
block is allocated, and unmapped when its last token is of no use any more. While vattd has too few, requests wait or
are preempted, as they are where the cache is full; the tokens are the same.
"""

from __future__ import annotations

from vattention.integrations.continuous_batching.sector_manager import paged_batching

__all__ = ["paged_batching"]
