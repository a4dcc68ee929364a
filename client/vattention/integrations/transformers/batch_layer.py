"""What the layers of a VattCache have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import NoReturn

import torch
from transformers.cache_utils import CacheLayerMixin

from vatt.errors import InvalidRequest
from vattention.integrations.transformers.batch_rows import BatchRows


class BatchLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # transformers' __init_subclass__
    """One model layer's keys and values of the batch.

    Layers of one forward pass are filled in turn, so each counts its own tokens. What changes rows or capacity is for
    all layers at once: those calls belong to VattCache, and are refused here.
    """

    _rows: BatchRows

    @abstractmethod
    def check_can_keep(self, length: int) -> None:
        """Raises InvalidRequest if the layer no longer has what `keep_tokens` would leave."""

    @abstractmethod
    def keep_tokens(self, length: int) -> None:
        """Hold the first `length` tokens, and look at no others: they may be unmapped."""

    @abstractmethod
    def keep_rows(self) -> None:
        """Hold the batch's rows, and look at no others: they may be unmapped."""

    @abstractmethod
    def gather(self, indices: torch.Tensor) -> None:
        """Make row i what row `indices[i]` was. There are rows enough for the larger of both batches."""

    def offload(self) -> NoReturn:
        refuse("offloading")

    def prefetch(self) -> NoReturn:
        refuse("offloading")

    def reset(self) -> NoReturn:
        refuse("reset() of a single layer")

    def crop(self, tokens_to_remove: int) -> NoReturn:
        refuse("crop() of a single layer")

    def reorder_cache(self, beam_idx: torch.Tensor) -> NoReturn:
        refuse("reorder_cache() of a single layer")

    def batch_repeat_interleave(self, repeats: int) -> NoReturn:
        refuse("batch_repeat_interleave() of a single layer")

    def batch_select_indices(self, indices: torch.Tensor) -> NoReturn:
        refuse("batch_select_indices() of a single layer")


def refuse(what: str) -> NoReturn:
    raise InvalidRequest(
        f"VattCache has no {what}: its rows are pages shared by all layers; use the cache's own methods"
    )
