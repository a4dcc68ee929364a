"""How sarathi's FlashAttention wrapper touches the cache: the rows and tokens of a batch, and nothing beside them."""

from __future__ import annotations

from collections.abc import Sequence as Several
from functools import lru_cache

import torch

from tests.vattention.sarathi.cache_engine import KVPair
from tests.vattention.sarathi.sequence import Scheduled


@lru_cache(maxsize=512)
def row_values(marker: int, tensor: int, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """What one tensor holds of a whole row, [tokens, heads, head size]: whole numbers up to 2039, exact in float16."""
    tokens, heads, size = shape
    of_token = marker * 389 + tensor * 97 + torch.arange(tokens)[:, None, None] * 7
    within = torch.arange(heads)[:, None] * 53 + torch.arange(size)
    return ((of_token + within) % 2039 + 1).to(dtype)


def values(marker: int, tensor: int, cache: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """[end - start, heads, head size]: what `cache` holds of some tokens of a row."""
    return row_values(marker, tensor, cache.shape[1:], cache.dtype)[start:end]


class AttentionWrapper:
    def __init__(self, kv_cache: Several[KVPair]) -> None:
        self._kv_cache = kv_cache

    def forward(self, scheduled: Several[Scheduled], batch_idx: dict[int, int]) -> None:
        """Write what the batch's tokens add, prompts first; `batch_idx` has the sequences' rows."""
        prompts = [entry for entry in scheduled if entry.chunk_len]
        decodes = [entry for entry in scheduled if not entry.chunk_len]
        for layer, pair in enumerate(self._kv_cache):
            for kind, cache in enumerate(pair):
                tensor = 2 * layer + kind
                for entry in prompts:
                    self._prefill(cache, tensor, entry, batch_idx)
                if decodes:
                    self._decode(cache, tensor, decodes, batch_idx)

    def _prefill(self, cache: torch.Tensor, tensor: int, entry: Scheduled, batch_idx: dict[int, int]) -> None:
        """The whole row, without its row dimension; then from what is cached on, as far as the chunk reaches."""
        heads, size = cache.shape[-2:]
        index = torch.tensor(batch_idx[entry.sequence.seq_id], dtype=torch.int32)
        cached = entry.sequence.prompt_tokens_processed
        row = cache[index].reshape(1, -1, heads, size)
        assert row.data_ptr() == cache[index].data_ptr()  # a copy would read where no memory is
        end = cached + entry.chunk_len
        row.squeeze(0)[cached:][: entry.chunk_len] = values(entry.sequence.marker, tensor, cache, cached, end)

    def _decode(self, cache: torch.Tensor, tensor: int, decodes: Several[Scheduled], batch_idx: dict[int, int]) -> None:
        """All rows up to the longest, of which only the batch's are touched, up to their own lengths."""
        cache_lens = [entry.length - 1 for entry in decodes]
        max_cache_len = max(cache_lens) + 1
        all_rows = cache[:, :max_cache_len]
        rows = torch.tensor([batch_idx[entry.sequence.seq_id] for entry in decodes])
        new = [
            values(entry.sequence.marker, tensor, cache, length, length + 1)
            for entry, length in zip(decodes, cache_lens, strict=True)
        ]
        all_rows[rows, torch.tensor(cache_lens)] = torch.cat(new)

    def holds(self, marker: int, row: int, token_count: int) -> bool:
        """Whether the row's first tokens are those of `marker`, in K and V of every layer."""
        return all(
            torch.equal(cache[row, :token_count], values(marker, 2 * layer + kind, cache, 0, token_count))
            for layer, pair in enumerate(self._kv_cache)
            for kind, cache in enumerate(pair)
        )
