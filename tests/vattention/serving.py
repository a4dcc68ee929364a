"""A serving system in the style of sarathi-lean: its accounting of KV blocks, and a loop over vattention."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

import vattention


def marker(seed: int, tensor: int, token: int) -> float:
    """What stands at both ends of a token in one tensor: float16 holds such integers exactly."""
    return float((seed * 389 + tensor * 97 + token * 7) % 2039 + 1)


def write_tokens(layers: Sequence[torch.Tensor], row: int, seed: int, start: int, end: int) -> None:
    """Write tokens of one row in every [B, ctx, H, D] view."""
    for number, view in enumerate(layers):
        values = torch.tensor([marker(seed, number, token) for token in range(start, end)], dtype=view.dtype)
        view[row, start:end, 0, 0] = values
        view[row, start:end, -1, -1] = values


def tokens_are(layers: Sequence[torch.Tensor], row: int, seed: int, end: int) -> bool:
    """Whether the row's first tokens are as write_tokens wrote them."""
    for number, view in enumerate(layers):
        values = torch.tensor([marker(seed, number, token) for token in range(end)], dtype=view.dtype)
        if not torch.equal(view[row, :end, 0, 0], values) or not torch.equal(view[row, :end, -1, -1], values):
            return False
    return True


class BlockManager:
    """How sarathi decides whom to admit: by what num_free_kvblocks says, less what it promised in this iteration."""

    def __init__(self, tokens_per_block: int, total_blocks: int) -> None:
        self._tokens_per_block = tokens_per_block
        self._watermark = total_blocks // 100
        self._free = self._promised = 0

    def begin(self, free_blocks: int) -> None:
        self._free, self._promised = free_blocks, 0

    def blocks(self, token_count: int) -> int:
        return -(-token_count // self._tokens_per_block)

    def can_allocate(self, token_count: int) -> bool:
        return self._free - self._promised - self.blocks(token_count) >= self._watermark

    def allocate(self, token_count: int) -> None:
        self._promised += self.blocks(token_count)

    def can_append_slot(self) -> bool:
        return self._free - self._promised > 0

    def append_slot(self, token_count: int) -> None:
        self._promised += self.blocks(token_count + 1) - self.blocks(token_count)

    def free(self, token_count: int) -> None:
        self._free += self.blocks(token_count)


@dataclass
class Request:
    seed: int
    prompt_tokens: int
    total_tokens: int
    length: int = 0
    row: int = -1
    written: int = 0


class ServingLoop:
    """Serves requests to the end. Preempts the youngest, to start over, when memory is short.

    `total_blocks` and `blocks` (of a number of tokens) are the contract's: a step may only run out of memory beyond.
    """

    def __init__(self, manager: BlockManager, layers: Sequence[torch.Tensor], *, is_async: bool) -> None:
        self.manager = manager
        self.layers = layers
        self.is_async = is_async
        self.lengths = [0] * layers[0].shape[0]
        self.running: list[Request] = []
        self.waiting: deque[Request] = deque()
        self.finished: list[Request] = []
        self.preempted_count = self.short_count = 0
        self.short_lengths: list[list[int]] = []  # what was asked for when a step found no memory

    def serve(self, requests: Sequence[Request]) -> None:
        self.waiting.extend(requests)
        while self.waiting or self.running:
            self.schedule()
            self.execute()

    def schedule(self) -> None:
        manager = self.manager
        manager.begin(vattention.num_free_kvblocks())
        for request in list(self.running):
            if request not in self.running:
                continue
            while not manager.can_append_slot() and len(self.running) > 1:
                self.preempt()
            if request in self.running:
                manager.append_slot(request.length)
        while self.waiting and len(self.running) < len(self.lengths):
            request = self.waiting[0]
            if not manager.can_allocate(request.prompt_tokens):
                break
            self.waiting.popleft()
            manager.allocate(request.prompt_tokens)
            request.length = request.prompt_tokens
            request.row = vattention.alloc_new_batch_idx(request.length)
            assert request.row != -1
            self.running.append(request)

    def execute(self) -> None:
        for request in self.running:
            self.lengths[request.row] = request.length
        while True:
            try:
                if self.is_async:
                    vattention.step_async(list(self.lengths))
                else:
                    vattention.step(list(self.lengths), True)
                break
            except RuntimeError:
                self.short_lengths.append(list(self.lengths))
                self.preempt()
        for request in list(self.running):
            write_tokens(self.layers, request.row, request.seed, request.written, request.length)
            request.written = request.length
            if request.length == request.total_tokens:
                assert tokens_are(self.layers, request.row, request.seed, request.length)
                self.end(request)
                self.finished.append(request)
            else:
                request.length += 1

    def preempt(self) -> None:
        request = self.running[-1]
        self.preempted_count += 1
        self.manager.free(request.length)
        self.end(request)
        self.waiting.appendleft(request)

    def end(self, request: Request) -> None:
        vattention.free_batch_idx(request.row)
        self.lengths[request.row] = 0
        self.running.remove(request)
        request.length = request.written = 0
        request.row = -1
