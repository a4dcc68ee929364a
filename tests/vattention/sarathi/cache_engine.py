"""Sarathi's cache engine: every call that it makes of `vattention`, in its order."""

from __future__ import annotations

from collections.abc import Sequence as Several

import torch

import vattention
from tests.vattention.sarathi.config import CacheConfig
from tests.vattention.sarathi.sequence import Scheduled, Sequence

KVPair = tuple[torch.Tensor, torch.Tensor]


class CacheEngine:
    def __init__(self, config: CacheConfig) -> None:
        self._config = config
        self.curr_seq_lens = [0] * config.max_batch_size
        self.seq_to_batch_idx: dict[int, int] = {}
        self.kv_cache = self._allocate()

    def _allocate(self) -> list[KVPair]:
        """K and V of each layer, [max_batch_size, max_model_len, heads, head size]."""
        config, model = self._config, self._config.model
        tensors = vattention.init_kvcache(
            model.num_layers,
            model.num_kv_heads,
            model.head_size,
            config.max_batch_size,
            model.max_model_len,
            0,
            model.dtype,
            config.page_size,
            config.megacache,
        )
        vattention.reserve_physical_pages(config.memory_for_gpu)
        if config.megacache:
            k, v = tensors
            return [(k[:, :, layer], v[:, :, layer]) for layer in range(model.num_layers)]
        return list(zip(tensors[: model.num_layers], tensors[model.num_layers :], strict=True))

    def num_free_blocks(self) -> int:
        return vattention.num_free_kvblocks()

    def step(self, scheduled: Several[Scheduled]) -> None:
        for entry in scheduled:
            row = self._batch_idx(entry.sequence, entry.length)
            self.curr_seq_lens[row] = entry.length
        if self._config.is_async:
            vattention.step_async(self.curr_seq_lens)
        else:
            vattention.step(self.curr_seq_lens, True)

    def _batch_idx(self, sequence: Sequence, length: int) -> int:
        if sequence.seq_id not in self.seq_to_batch_idx:
            row = vattention.alloc_new_batch_idx(length)
            assert row != -1
            self.seq_to_batch_idx[sequence.seq_id] = row
        return self.seq_to_batch_idx[sequence.seq_id]

    def free_request(self, sequence: Sequence) -> None:
        """Of a request that finished, or was preempted; in the latter case it may have had no row yet."""
        row = self.seq_to_batch_idx.pop(sequence.seq_id, None)
        if row is not None:
            vattention.free_batch_idx(row)
            self.curr_seq_lens[row] = 0

    def cleanup(self) -> None:
        vattention.cleanup()
