"""How sarathi sizes a KV cache: all that it knows of pages comes from here."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Of one worker: heads and layers are those on this device."""

    num_layers: int = 2
    num_kv_heads: int = 2
    head_size: int = 50
    dtype: torch.dtype = torch.float16
    max_model_len: int = 250  # tokens; 12.2 pages of 4 KiB, each of 20.48 tokens


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """`page_size` is what the option --model_block_size says, in bytes."""

    model: ModelConfig
    page_size: int
    memory_for_gpu: int  # bytes
    max_batch_size: int
    megacache: bool = False
    is_async: bool = True

    @property
    def token_bytes(self) -> int:
        """Of one token in one of the tensors."""
        model = self.model
        layers = model.num_layers if self.megacache else 1
        return model.num_kv_heads * model.head_size * model.dtype.itemsize * layers

    @property
    def block_size(self) -> int:
        """Tokens a KV block: whole ones a page, whatever vattention makes of the page."""
        return self.page_size // self.token_bytes

    @property
    def pages_per_block(self) -> int:
        return 2 if self.megacache else 2 * self.model.num_layers

    @property
    def num_gpu_blocks(self) -> int:
        return self.memory_for_gpu // (self.block_size * self.token_bytes * self.pages_per_block)
